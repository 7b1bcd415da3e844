"""The adapter that the images of a variant were sampled with: a checkpoint of the run, or a guest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class VariantOrigin:
    """An adapter file with its hash; a guest is an adapter of another origin, which is never selected."""

    file: str
    """Relative to the run's folder; of a guest the path as it was given."""
    sha256: str
    is_guest: bool = False
    trigger: str | None = None
    """The trigger word of a guest, which replaces that of the run in its prompts."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> VariantOrigin | None:
        """Read the values that `to_json` writes; None for a variant without an adapter file."""
        return cls(**value) if value else None
