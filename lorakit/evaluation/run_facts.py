"""Facts of a run that explain the result of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run; None where one is unknown."""

    num_images: int | None = None
    """Distinct training images; near duplicates count once."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunFacts:
        """Read the values that `to_json` writes."""
        return cls(**value)
