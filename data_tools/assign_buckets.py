"""Assign a bucket and a crop to every reset_records image, and note what is crop_share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools import crop_focus
from data_tools.scan import note_code, replace_notes
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import buckets, crops
from lorakit.imaging.buckets import MAX_UNNOTICED_UPSCALE, CropBox, ImageSize
from lorakit.manifest import Record

NOTES = frozenset({"cropped", "upscaled"})
BELOW_MIN_RESOLUTION = "below_resolution"
MAX_CROP_SHARE = 0.10


@dataclass(frozen=True)
class BucketOptions:
    """`resolution` is the side of the square bucket in pixels; all sides are multiples of `size_multiple`.

    With several `resolutions`, each image gets the largest that it fills without upscaling. `crop` is what
    crops are centered on: center, saliency or face.
    """

    resolution: int = 1024
    size_multiple: int = 16
    batch_size: int = 1
    bucket_mode: str = "auto"
    resolutions: tuple[int, ...] = ()
    upscale: bool = False
    crop: str = crops.CENTER

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any image is opened."""
        if self.batch_size < 1:
            raise ConfigError(
                f"batch_size must be at least 1, not {self.batch_size}", where="batch-size", remedy="use 1"
            )
        for resolution in self.resolutions or (self.resolution,):
            buckets.assign_buckets(
                [(1, 1)], resolution, self.size_multiple, mode=self.bucket_mode, batch_size=self.batch_size
            )
        crop_focus.check_crop_center(self.crop)


def bucket_records(
    root: Path, records: Sequence[Record], options: BucketOptions, *, quiet: bool = True
) -> list[Record]:
    """Return the records with bucket and crop; excluded images have neither, and crops set by hand stay."""
    reset_records = [_reset_below_resolution(record) for record in records]
    with_crop_centers = crop_focus.find_crop_centers(
        root, [r for r in reset_records if r.keep], options.crop, quiet=quiet
    )
    bucketed = crops.assign_buckets_and_crops(
        with_crop_centers,
        options.resolution,
        options.size_multiple,
        mode=options.bucket_mode,
        batch_size=options.batch_size,
        resolutions=options.resolutions,
        upscale=options.upscale,
    )
    by_file = {record.file: record for record in bucketed}
    return [_add_bucket_notes(by_file.get(record.file, record), options) for record in reset_records]


def apply_crop_boxes(records: Sequence[Record], boxes: Mapping[str, CropBox | None]) -> list[Record]:
    """Return the records with crops set by hand; None removes such a crop."""
    changed = []
    for record in records:
        if record.file in boxes:
            box = boxes[record.file]
            record = replace(record, crop=box, crop_source=crops.USER if box else None, focal_point=None)
            manifest.check_record(record, f"crop of {record.file!r}")
        changed.append(record)
    return changed


def read_crop_boxes(path: Path, records: Sequence[Record]) -> dict[str, CropBox | None]:
    """Read crops by image from JSON lines {"file_name": ..., "crop": [left, top, right, bottom] or null}."""
    if not path.is_file():
        raise ConfigError("the file of crops does not exist", where=str(path), remedy="correct --crops")
    known = {record.file for record in records if record.width}
    boxes: dict[str, CropBox | None] = {}
    for number, row in enumerate(storage.read_jsonl(path), 1):
        where, name, box = f"{path}, row {number}", row.get("file_name"), row.get("crop", "")
        if not isinstance(name, str) or name not in known:
            raise DataError(f"there is no image {name!r}", where=where, remedy="correct file_name")
        is_int_box = isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box)
        if box is not None and not is_int_box:
            remedy = "write [left, top, right, bottom] in pixels of the upright image, or null"
            raise DataError(f"{box!r} is not a crop", where=where, remedy=remedy)
        boxes[name] = (box[0], box[1], box[2], box[3]) if box else None
    return boxes


def count_per_bucket(records: Sequence[Record]) -> dict[ImageSize, int]:
    """Return the number of images in each bucket, sorted by aspect ratio."""
    counts = Counter(record.bucket for record in records if record.keep and record.bucket)
    return dict(sorted(counts.items(), key=lambda item: (item[0][0] / item[0][1], item[0])))


def _reset_below_resolution(record: Record) -> Record:
    """Return the record to be bucketed again if it was excluded as too small for every resolution."""
    excluded = not record.keep and note_code(record.reason) == BELOW_MIN_RESOLUTION
    return replace(record, keep=True, reason=None) if excluded else record


def _add_bucket_notes(record: Record, options: BucketOptions) -> Record:
    """Note a large crop and upscaling; exclude an image that fits no resolution."""
    if not record.keep:
        cleared_fields = {"bucket": None} | (
            {} if record.crop_source == crops.USER else {"crop": None, "crop_source": None}
        )
        return replace_notes(replace(record, **cleared_fields), NOTES, [])  # type: ignore[arg-type]
    if record.bucket is None:
        what = f"{record.width}x{record.height} would be upscaled to fill {min(options.resolutions)}"
        reason = f"{BELOW_MIN_RESOLUTION}: {what} (add a smaller resolution, or --upscale)"
        return replace_notes(replace(record, keep=False, reason=reason), NOTES, [])
    notes, scale, crop_share = [], crops.upscale_factor(record), crops.cropped_fraction(record)
    if scale > MAX_UNNOTICED_UPSCALE:
        notes.append(f"upscaled: {scale:.2f} times, to fill its bucket")
    if crop_share > MAX_CROP_SHARE:
        notes.append(f"cropped: {crop_share:.0%} of the image is outside the crop")
    return replace_notes(record, NOTES, notes)
