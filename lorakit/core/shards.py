"""One part of a list of files or images, for work on several machines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lorakit.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`: every `count`-th element."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `2/8`; anything else is a `ConfigError`."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"{text!r} is not a shard", where="shard", remedy="write 1/8, 2/8, ... 8/8")
        return cls(int(match[1]), int(match[2]))

    def part(self, elements: Sequence[T]) -> Sequence[T]:
        """Return the elements of this shard."""
        return elements[self.number - 1 :: self.count]
