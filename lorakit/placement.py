"""Which training shape and crop every image of a manifest gets; a crop that a person set stays as it is.

The arithmetic is in `buckets`. The crop is laid around the record's `focus` (its middle without one), and so
is a pure function of size, shape and focus: a stored crop that differs from it was set by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from lorakit import buckets, storage
from lorakit.buckets import UPSCALED, Box, Size
from lorakit.manifest import Record

CENTRE, USER = "centre", "user"


def place(
    records: Sequence[Record],
    resolution: int,
    step: int,
    *,
    mode: str = "auto",
    batch: int = 1,
    tiers: Sequence[int] = (),
    upscale: bool = True,
) -> list[Record]:
    """The records with `bucket` and `crop`; both are None for an image that has no place.

    With `tiers` (resolutions), an image goes into the largest that it fills by itself, and one too small for
    all of them has a place only with `upscale`: in the smallest, enlarged. Without tiers there is one
    resolution, and small images are enlarged.
    """
    held = [replace(record, crop_by=USER) if by_hand(record) else record for record in records]
    sizes = [crop_size(record) for record in held]
    levels: list[int | None] = [resolution] * len(held)
    if tiers:
        levels = buckets.tiers_of(sizes, tiers, step, mode)
        levels = [min(tiers) if level is None and upscale else level for level in levels]
    members: dict[int, list[int]] = defaultdict(list)
    for index, level in enumerate(levels):
        if level is not None:
            members[level].append(index)
    placed = [replace(record, bucket=None) for record in held]
    for level, group in sorted(members.items()):
        enlarging = not tiers or (upscale and level == min(tiers))
        shapes = _choose(
            [sizes[i] for i in group], [held[i].repeats for i in group], level, step, mode, batch, enlarging
        )
        for index, shape in zip(group, shapes, strict=True):
            placed[index] = _with(held[index], shape)
    return [record if record.bucket else _without(record) for record in placed]


def by_hand(record: Record) -> bool:
    """Whether a person chose the crop: it says so, or it is not what `place` would have laid there."""
    if record.crop is None or record.crop_by == USER:
        return record.crop is not None
    return record.bucket is None or record.crop != buckets.crop_box(record.size, record.bucket, record.focus)


def crop_size(record: Record) -> Size:
    """The size that the shape must suit: that of the hand-set crop, or of the whole image."""
    if record.crop_by != USER or record.crop is None:
        return record.size
    left, top, right, bottom = record.crop
    return right - left, bottom - top


def kept_box(record: Record) -> Box:
    """What the model sees of the image: the crop; of a hand-set one, or without any, the middle that has the
    bucket's aspect."""
    box = record.crop or (0, 0, *record.size)
    if record.bucket is None or (record.crop and record.crop_by != USER):
        return box
    left, top, right, bottom = buckets.crop_box((box[2] - box[0], box[3] - box[1]), record.bucket)
    return box[0] + left, box[1] + top, box[0] + right, box[1] + bottom


def crop_share(record: Record) -> float:
    """The share, 0..1, that the crop cuts off: of the image, or of the box that a person set."""
    if record.crop is None:
        return 0.0
    left, top, right, bottom = kept_box(record)
    width, height = crop_size(record)
    return 1 - (right - left) * (bottom - top) / (width * height)


def enlargement(record: Record) -> float:
    """Bucket pixels per image pixel; above 1 the image is enlarged."""
    if record.bucket is None:
        return 1.0
    left, top, right, bottom = kept_box(record)
    return buckets.cover_scale((right - left, bottom - top), record.bucket)


def shown_hash(record: Record) -> str:
    """16 hex digits of what a model that describes the picture is shown: its pixels inside the crop."""
    return storage.sha256_bytes(f"{record.pixels} {kept_box(record)}".encode())[:16]


def _choose(
    sizes: Sequence[Size], weights: Sequence[int], level: int, step: int, mode: str, batch: int, upscale: bool
) -> list[Size]:
    chosen = buckets.choose(sizes, level, step, mode=mode, batch=batch, weights=weights, upscale=upscale)
    if upscale:
        return chosen
    # A shared shape may enlarge an image a little that its own shape would not: that one keeps its own.
    own = buckets.choose(sizes, level, step, mode="native" if mode == "auto" else mode)
    return [
        shape if buckets.cover_scale(size, shape) <= UPSCALED else alone
        for size, shape, alone in zip(sizes, chosen, own, strict=True)
    ]


def _with(record: Record, shape: Size) -> Record:
    if record.crop_by == USER:
        return replace(record, bucket=shape)
    crop = buckets.crop_box(record.size, shape, record.focus)
    by = record.crop_by if record.focus else CENTRE
    return replace(record, bucket=shape, crop=crop, crop_by=by or CENTRE)


def _without(record: Record) -> Record:
    """A crop that a person set outlives the lack of a place."""
    return record if record.crop_by == USER else replace(record, crop=None, crop_by=None)
