"""Which training shape and crop every image of a manifest gets; a crop that a person set stays as it is.

The arithmetic is in `buckets`. The crop is laid around the record's `focus` (its middle without one), and so
is a pure function of size, shape and focus: a stored crop that differs from it was set by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorakit.core import storage
from lorakit.imaging import buckets
from lorakit.imaging.buckets import MAX_UNNOTICED_UPSCALE, CropBox, ImageSize
from lorakit.manifest import Record

CENTRE, USER = "centre", "user"
MAX_USER_CROP_LOSS = 0.01  # of a hand-set crop, for the sake of a shape that others have
_INDIVIDUAL_MODE = {"auto": "native"}  # the mode without regard for others


def assign_buckets_and_crops(
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
    held = [replace(record, crop_by=USER) if has_user_crop(record) else record for record in records]
    sizes = [crop_size(record) for record in held]
    levels: list[int | None] = [resolution] * len(held)
    if tiers:
        levels = buckets.assign_resolutions(sizes, tiers, step, mode)
        levels = [min(tiers) if level is None and upscale else level for level in levels]
    members: dict[int, list[int]] = defaultdict(list)
    for index, level in enumerate(levels):
        if level is not None:
            members[level].append(index)
    placed = [replace(record, bucket=None) for record in held]
    for level, group in sorted(members.items()):
        grid = _BucketChooser(
            level, step, mode, batch, upscale=not tiers or (upscale and level == min(tiers))
        )
        for index, shape in zip(group, _choose([held[i] for i in group], grid), strict=True):
            placed[index] = _with_bucket(held[index], shape)
    return [record if record.bucket else _without_bucket(record) for record in placed]


def has_user_crop(record: Record) -> bool:
    """Whether a person chose the crop: it says so, or it is not what `place` would have laid there."""
    if record.crop is None or record.crop_by == USER:
        return record.crop is not None
    return record.bucket is None or record.crop != buckets.crop_box(record.size, record.bucket, record.focus)


def crop_size(record: Record) -> ImageSize:
    """The size that the shape must suit: that of the hand-set crop, or of the whole image."""
    if record.crop_by != USER or record.crop is None:
        return record.size
    left, top, right, bottom = record.crop
    return right - left, bottom - top


def training_crop(record: Record) -> CropBox:
    """What the model sees of the image: the crop; of a hand-set one, or without any, the middle that has the
    bucket's aspect."""
    box = record.crop or (0, 0, *record.size)
    if record.bucket is None or (record.crop and record.crop_by != USER):
        return box
    left, top, right, bottom = buckets.crop_box((box[2] - box[0], box[3] - box[1]), record.bucket)
    return box[0] + left, box[1] + top, box[0] + right, box[1] + bottom


def cropped_fraction(record: Record) -> float:
    """The share, 0..1, that the crop cuts off: of the image, or of the box that a person set."""
    if record.crop is None:
        return 0.0
    left, top, right, bottom = training_crop(record)
    width, height = crop_size(record)
    return 1 - (right - left) * (bottom - top) / (width * height)


def upscale_factor(record: Record) -> float:
    """Bucket pixels per image pixel; above 1 the image is enlarged."""
    if record.bucket is None:
        return 1.0
    return buckets.cover_scale(crop_size(record), record.bucket)


def crop_hash(record: Record) -> str:
    """16 hex digits of what a model that describes the picture is shown: its pixels inside the crop."""
    return storage.sha256_bytes(f"{record.pixels} {training_crop(record)}".encode())[:16]


@dataclass(frozen=True)
class _BucketChooser:
    """How the shapes of one resolution are chosen."""

    resolution: int
    step: int
    mode: str
    batch: int
    upscale: bool

    def own(self, sizes: Sequence[ImageSize]) -> list[ImageSize]:
        """The shape that suits each image best when it shares none."""
        return buckets.assign_buckets(
            sizes, self.resolution, self.step, mode=_INDIVIDUAL_MODE.get(self.mode, self.mode)
        )

    def shared(self, sizes: Sequence[ImageSize], weights: Sequence[int]) -> list[ImageSize]:
        """By mode; an image that its shape would enlarge where none may be keeps its own."""
        chosen = buckets.assign_buckets(
            sizes,
            self.resolution,
            self.step,
            mode=self.mode,
            batch=self.batch,
            weights=weights,
            upscale=self.upscale,
        )
        if self.upscale:
            return chosen
        return [
            shape if buckets.cover_scale(size, shape) <= MAX_UNNOTICED_UPSCALE else alone
            for size, shape, alone in zip(sizes, chosen, self.own(sizes), strict=True)
        ]


def _choose(records: Sequence[Record], grid: _BucketChooser) -> list[ImageSize]:
    """A shape for each record; a crop that a person set gets one that hardly cuts into it."""
    free = [record for record in records if record.crop_by != USER]
    shared = grid.shared([crop_size(record) for record in free], [record.repeats for record in free])
    if len(free) == len(records):
        return shared
    waiting, chosen = iter(shared), []
    for record in records:
        if record.crop_by != USER:
            chosen.append(next(waiting))
            continue
        size = crop_size(record)
        losses = {shape: buckets.crop_fraction(size, shape) for shape in shared}
        near = [shape for shape, loss in losses.items() if loss <= MAX_USER_CROP_LOSS]
        chosen.append(min(near, key=losses.__getitem__) if near else grid.own([size])[0])
    return chosen


def _with_bucket(record: Record, shape: ImageSize) -> Record:
    if record.crop_by == USER:
        return replace(record, bucket=shape)
    crop = buckets.crop_box(record.size, shape, record.focus)
    by = record.crop_by if record.focus else CENTRE
    return replace(record, bucket=shape, crop=crop, crop_by=by or CENTRE)


def _without_bucket(record: Record) -> Record:
    """A crop that a person set outlives the lack of a place."""
    return record if record.crop_by == USER else replace(record, crop=None, crop_by=None)
