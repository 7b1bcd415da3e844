"""Which images a step trains on: seeded, shape-grouped, and a pure function of the step.

Images are an endless stream of epochs, each an exact permutation; step k takes the k-th stretch of it. A
stretch is split into micro-batches of one shape, and each one's loss is weighted by its share, which equals
the full batch's gradient exactly: no image is dropped, doubled or over-weighted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from lorakit import keyed

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """One image of a step: `position` in the endless stream, which also keys its noise."""

    position: int
    image: int
    caption: int


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(keyed.permutation(count, seed, epoch))


def slots(step: int, batch: int, captions: Sequence[int], seed: int) -> list[Slot]:
    """The `batch` slots of a step (counted from 0); `captions` holds the number of captions of each image."""
    chosen = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, index = divmod(position, len(captions))
        image = _order(len(captions), seed, epoch)[index]
        variant = keyed.key(seed, "caption", position) % captions[image]
        chosen.append(Slot(position, image, variant))
    return chosen


def micro_batches(chosen: Sequence[Slot], shapes: Sequence[Shape], size: int) -> list[list[Slot]]:
    """Split slots into groups of one shape with at most `size` members; the order is deterministic."""
    ordered = sorted(chosen, key=lambda slot: (shapes[slot.image], slot.position))
    groups = [list(group) for _, group in groupby(ordered, key=lambda slot: shapes[slot.image])]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def share(chosen: Sequence[Slot], rank: int, world: int) -> list[Slot]:
    """The slots of one of `world` processes; the shares have equal sizes when `world` divides the batch."""
    return list(chosen[rank::world])
