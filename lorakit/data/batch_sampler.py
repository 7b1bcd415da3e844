"""Samples of each training step: seeded, grouped by batch shape, a pure function of the step.

The samples are an endless stream of epochs, each an exact permutation of the images; step k trains on the
k-th stretch of it. A stretch is split into micro-batches of one shape, and the loss of each is weighted by
its share of the samples. This equals the gradient of the full batch exactly: no image is dropped, repeated or
weighted more than the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from lorakit.core import rng
from lorakit.data.caption_choice import CaptionChoice

BatchShape = tuple[int, ...]
EMPTY_CAPTION = -1  # caption index of the empty caption


@dataclass(frozen=True)
class SampleIndex:
    """One sample of a step.

    `position` in the endless stream also keys its noise; `image_index` counts the images of the training set
    and `caption_index` the captions of that image, or is `EMPTY_CAPTION`. `tag_seed` gives the order of its
    tags; None leaves them as they are written.
    """

    position: int
    image_index: int
    caption_index: int
    tag_seed: int | None = None


@lru_cache(maxsize=8)
def _epoch_order(num_images: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(rng.epoch_permutation(num_images, seed, epoch))


def step_samples(
    step: int, batch_size: int, choices: Sequence[CaptionChoice], seed: int, *, first_position: int = 0
) -> list[SampleIndex]:
    """Return the `batch_size` samples of a step (counted from 0).

    `choices` has an entry for each image of the training set, `first_position` is the position in the stream
    of the first sample of step 0.
    """
    start = first_position + step * batch_size
    return [sample_at(position, choices, seed) for position in range(start, start + batch_size)]


def sample_at(position: int, choices: Sequence[CaptionChoice], seed: int) -> SampleIndex:
    """Return the sample at a position of the stream."""
    epoch, index = divmod(position, len(choices))
    image_index = _epoch_order(len(choices), seed, epoch)[index]
    choice = choices[image_index]
    if choice.is_dropped(seed, position):
        return SampleIndex(position, image_index, EMPTY_CAPTION)
    caption_index = choice.caption_index(seed, position)
    return SampleIndex(position, image_index, caption_index, choice.tag_seed(seed, position, caption_index))


def micro_batches(
    samples: Sequence[SampleIndex], shapes: Sequence[BatchShape], size: int
) -> list[list[SampleIndex]]:
    """Split samples into groups of one shape with at most `size` members; the order is deterministic.

    `shapes` holds the batch shape of each image of the training set.
    """
    ordered = sorted(samples, key=lambda sample: (shapes[sample.image_index], sample.position))
    groups = [list(group) for _, group in groupby(ordered, key=lambda sample: shapes[sample.image_index])]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def first_position(content_hash: str | None, num_images: int, batch_size: int) -> int:
    """Return the position at which a run begins; `content_hash` is that of the adapter of `init_from`."""
    return 0 if content_hash is None else continued_position(content_hash, num_images, batch_size)


def continued_position(content_hash: str, num_images: int, batch_size: int) -> int:
    """Return the position at which a run begins that starts from an adapter with this content hash.

    A run with the same seed as the one that trained the adapter would see the same images with the same noise
    again. The position is the beginning of an epoch and of a step.
    """
    return num_images * batch_size * (1 + rng.derive_seed(0, "continued", content_hash) % (1 << 20))


def shard(samples: Sequence[SampleIndex], rank: int, world_size: int) -> list[SampleIndex]:
    """Return the samples of one process; all get the same number if `world_size` divides the batch."""
    return list(samples[rank::world_size])
