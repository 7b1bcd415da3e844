"""Bucket and crop of every image of a manifest; a crop that the user set is never changed.

The arithmetic is in `buckets`. A crop is placed around the record's `focal_point` (without one, its center),
so it is a pure function of size, bucket and focal point: a stored crop that differs from it was set by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.core import checksums
from lorakit.imaging import buckets
from lorakit.imaging.buckets import MAX_UNNOTICED_UPSCALE, CropBox, ImageSize
from lorakit.manifest import Record, change_record

CENTER, USER = "center", "user"
MAX_USER_CROP_LOSS = 0.01  # share of a user's crop that may be lost to use a bucket that other images have
_INDIVIDUAL_MODE = {"auto": "native"}  # the mode that chooses each image's bucket independently


def assign_buckets_and_crops(
    records: Sequence[Record],
    resolution: int,
    size_multiple: int,
    *,
    mode: str = "auto",
    batch_size: int = 1,
    resolutions: Sequence[int] = (),
    upscale: bool = True,
) -> list[Record]:
    """Return the records with `bucket` and `crop`; both are None for an image that gets no bucket.

    With `resolutions`, each image gets the largest that needs no upscaling. An image too small for all of
    them gets a bucket only with `upscale`: of the smallest, upscaled. Without `resolutions`, all images get
    buckets of `resolution`, and small ones are upscaled.
    """
    records = [change_record(r, crop_source=USER) if has_user_crop(r) else r for r in records]
    sizes = choose_sizes(
        records,
        resolution,
        size_multiple,
        mode=mode,
        batch_size=batch_size,
        resolutions=resolutions,
        upscale=upscale,
    )
    pairs = zip(records, sizes, strict=True)
    return [_without_bucket(record) if size is None else _with_bucket(record, size) for record, size in pairs]


def choose_sizes(
    records: Sequence[Record],
    resolution: int,
    size_multiple: int,
    *,
    mode: str = "auto",
    batch_size: int = 1,
    resolutions: Sequence[int] = (),
    upscale: bool = True,
) -> list[ImageSize | None]:
    """Return the bucket of each record, as `assign_buckets_and_crops`; None for one that gets no bucket."""
    sizes = [crop_size(record) for record in records]
    assigned: list[int | None] = [resolution] * len(records)
    if resolutions:
        assigned = buckets.assign_resolutions(sizes, resolutions, size_multiple, mode)
        assigned = [min(resolutions) if value is None and upscale else value for value in assigned]
    members: dict[int, list[int]] = defaultdict(list)
    for index, value in enumerate(assigned):
        if value is not None:
            members[value].append(index)
    bucketed: list[ImageSize | None] = [None] * len(records)
    for value, indices in sorted(members.items()):
        may_upscale = not resolutions or (upscale and value == min(resolutions))
        chooser = _BucketChooser(value, size_multiple, mode, batch_size, upscale=may_upscale)
        chosen = _choose_buckets([records[i] for i in indices], chooser)
        for index, bucket in zip(indices, chosen, strict=True):
            bucketed[index] = bucket
    return bucketed


def has_user_crop(record: Record) -> bool:
    """Return True if the user chose the crop: it says so, or it is not the crop of this record's bucket."""
    if record.crop is None or record.crop_source == USER:
        return record.crop is not None
    if record.bucket is None:
        return True
    return record.crop != buckets.crop_box(record.size, record.bucket, record.focal_point)


def crop_size(record: Record) -> ImageSize:
    """Return the size that the bucket must fit: that of the user's crop, otherwise of the whole image."""
    if record.crop_source != USER or record.crop is None:
        return record.size
    left, top, right, bottom = record.crop
    return right - left, bottom - top


def training_crop(record: Record) -> CropBox:
    """Return the crop that is trained on, always of the bucket's aspect.

    Of a user's crop, or of the whole image without a crop, it is the center part.
    """
    box = record.crop or (0, 0, *record.size)
    if record.bucket is None or (record.crop and record.crop_source != USER):
        return box
    left, top, right, bottom = buckets.crop_box((box[2] - box[0], box[3] - box[1]), record.bucket)
    return box[0] + left, box[1] + top, box[0] + right, box[1] + bottom


def cropped_fraction(record: Record) -> float:
    """Return the share, 0..1, that is cropped off: of the image, or of the user's crop."""
    if record.crop is None:
        return 0.0
    left, top, right, bottom = training_crop(record)
    width, height = crop_size(record)
    return 1 - (right - left) * (bottom - top) / (width * height)


def upscale_factor(record: Record) -> float:
    """Return the bucket pixels per image pixel; above 1 the image is upscaled."""
    if record.bucket is None:
        return 1.0
    return buckets.cover_scale(crop_size(record), record.bucket)


def crop_hash(record: Record) -> str:
    """Return 16 hex digits of the image's content inside the crop, which captioning models describe."""
    return checksums.sha256_bytes(f"{record.content_hash} {training_crop(record)}".encode())[:16]


@dataclass(frozen=True)
class _BucketChooser:
    """The rules by which the buckets of one resolution are chosen."""

    resolution: int
    size_multiple: int
    mode: str
    batch_size: int
    upscale: bool

    def individual_buckets(self, sizes: Sequence[ImageSize]) -> list[ImageSize]:
        """Return the best bucket of each image, whatever the others have."""
        mode = _INDIVIDUAL_MODE.get(self.mode, self.mode)
        return buckets.assign_buckets(sizes, self.resolution, self.size_multiple, mode=mode)

    def shared_buckets(self, sizes: Sequence[ImageSize], weights: Sequence[int]) -> list[ImageSize]:
        """Choose by mode; an image that would be upscaled against the rules gets its individual bucket."""
        shared = buckets.assign_buckets(
            sizes,
            self.resolution,
            self.size_multiple,
            mode=self.mode,
            batch_size=self.batch_size,
            weights=weights,
            upscale=self.upscale,
        )
        if self.upscale:
            return shared
        return [
            bucket if buckets.cover_scale(size, bucket) <= MAX_UNNOTICED_UPSCALE else individual
            for size, bucket, individual in zip(sizes, shared, self.individual_buckets(sizes), strict=True)
        ]


def _choose_buckets(records: Sequence[Record], chooser: _BucketChooser) -> list[ImageSize]:
    """Choose a bucket for each record; a user's crop gets one that hardly crops it."""
    free = [record for record in records if record.crop_source != USER]
    shared = chooser.shared_buckets([crop_size(record) for record in free], [r.repeats for r in free])
    if len(free) == len(records):
        return shared
    remaining, different, chosen = iter(shared), list(dict.fromkeys(shared)), []
    for record in records:
        if record.crop_source != USER:
            chosen.append(next(remaining))
            continue
        size = crop_size(record)
        losses = {bucket: buckets.crop_fraction(size, bucket) for bucket in different}
        fitting = [bucket for bucket, loss in losses.items() if loss <= MAX_USER_CROP_LOSS]
        chosen.append(
            min(fitting, key=losses.__getitem__) if fitting else chooser.individual_buckets([size])[0]
        )
    return chosen


def _with_bucket(record: Record, bucket: ImageSize) -> Record:
    if record.crop_source == USER:
        return change_record(record, bucket=bucket)
    crop = buckets.crop_box(record.size, bucket, record.focal_point)
    source = record.crop_source if record.focal_point else CENTER
    return change_record(record, bucket=bucket, crop=crop, crop_source=source or CENTER)


def _without_bucket(record: Record) -> Record:
    """Remove the bucket, and the crop unless the user set it."""
    if record.crop_source == USER:
        return change_record(record, bucket=None)
    return change_record(record, bucket=None, crop=None, crop_source=None)
