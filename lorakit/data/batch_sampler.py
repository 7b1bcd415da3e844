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

from lorakit.core import rng

BatchShape = tuple[int, ...]
EMPTY_CAPTION = -1  # in place of a caption's number: the empty caption


@dataclass(frozen=True)
class SampleIndex:
    """One image of a step: `position` in the endless stream, which also keys its noise; `caption` is its
    number among the image's, or `EMPTY`."""

    position: int
    image: int
    caption: int


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(rng.epoch_permutation(count, seed, epoch))


def step_samples(
    step: int, batch: int, captions: Sequence[int], seed: int, dropout: float = 0.0
) -> list[SampleIndex]:
    """The `batch` slots of a step (counted from 0); `captions` holds the number of captions of each image.

    `dropout` is the share of slots with the empty caption.
    """
    positions = range(step * batch, (step + 1) * batch)
    return [sample_at(position, captions, seed, dropout) for position in positions]


def sample_at(position: int, captions: Sequence[int], seed: int, dropout: float = 0.0) -> SampleIndex:
    """The slot at a position of the stream."""
    epoch, index = divmod(position, len(captions))
    image = _order(len(captions), seed, epoch)[index]
    variant = rng.derive_seed(seed, "caption", position) % captions[image]
    if dropout and rng.keyed_uniform(seed, "caption dropout", position) < dropout:
        variant = EMPTY_CAPTION
    return SampleIndex(position, image, variant)


def micro_batches(
    chosen: Sequence[SampleIndex], shapes: Sequence[BatchShape], size: int
) -> list[list[SampleIndex]]:
    """Split slots into groups of one shape with at most `size` members; the order is deterministic."""
    ordered = sorted(chosen, key=lambda slot: (shapes[slot.image], slot.position))
    groups = [list(group) for _, group in groupby(ordered, key=lambda slot: shapes[slot.image])]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def shard(chosen: Sequence[SampleIndex], rank: int, world: int) -> list[SampleIndex]:
    """The slots of one of `world` processes; the shares have equal sizes when `world` divides the batch."""
    return list(chosen[rank::world])
