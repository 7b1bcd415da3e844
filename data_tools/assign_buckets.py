"""Give every kept image its training shape and crop box, and name what that costs it."""

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
BELOW_MIN_RESOLUTION = "below_tiers"
MAX_CROP_SHARE = 0.10


@dataclass(frozen=True)
class BucketOptions:
    """`resolution` is the side of the square bucket, `step` what both sides must be a multiple of; pixels.

    With `tiers` (such resolutions), an image is used in the largest that it fills without being enlarged.
    `crop` says around what a crop is laid: centre, saliency or face.
    """

    resolution: int = 1024
    step: int = 16
    batch: int = 1
    mode: str = "auto"
    tiers: tuple[int, ...] = ()
    upscale: bool = False
    crop: str = crops.CENTRE

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any image is opened."""
        if self.batch < 1:
            raise ConfigError(f"batch must be at least 1, not {self.batch}", where="batch", remedy="use 1")
        for tier in self.tiers or (self.resolution,):
            buckets.assign_buckets([(1, 1)], tier, self.step, mode=self.mode, batch=self.batch)
        crop_focus.check_crop_center(self.crop)


def bucket_records(
    root: Path, records: Sequence[Record], options: BucketOptions, *, quiet: bool = True
) -> list[Record]:
    """The records with bucket and crop; refused images have neither, and crops that a person set stay."""
    kept = [_reset_below_resolution(record) for record in records]
    aimed = crop_focus.find_crop_centers(root, [r for r in kept if r.keep], options.crop, quiet=quiet)
    placed = crops.assign_buckets_and_crops(
        aimed,
        options.resolution,
        options.step,
        mode=options.mode,
        batch=options.batch,
        tiers=options.tiers,
        upscale=options.upscale,
    )
    by_file = {record.file: record for record in placed}
    return [_add_bucket_notes(by_file.get(record.file, record), options) for record in kept]


def apply_crop_boxes(records: Sequence[Record], boxes: Mapping[str, CropBox | None]) -> list[Record]:
    """The records with the crops that a person set; None takes one back."""
    changed = []
    for record in records:
        if record.file in boxes:
            box = boxes[record.file]
            record = replace(record, crop=box, crop_by=crops.USER if box else None, focus=None)
            manifest.check_record(record, f"box of {record.file!r}")
        changed.append(record)
    return changed


def read_crop_boxes(path: Path, records: Sequence[Record]) -> dict[str, CropBox | None]:
    """Boxes by image from JSON lines `{"file_name": ..., "crop": [left, top, right, bottom] or null}`."""
    if not path.is_file():
        raise ConfigError("there is no such file of boxes", where=str(path), remedy="correct --boxes")
    known = {record.file for record in records if record.width}
    boxes: dict[str, CropBox | None] = {}
    for number, row in enumerate(storage.read_jsonl(path), 1):
        where, name, box = f"{path}, row {number}", row.get("file_name"), row.get("crop", "")
        if name not in known:
            raise DataError(f"there is no image {name!r}", where=where, remedy="correct file_name")
        whole = isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box)
        if box is not None and not whole:
            remedy = "write [left, top, right, bottom] in pixels of the upright image, or null"
            raise DataError(f"{box!r} is no crop", where=where, remedy=remedy)
        boxes[name] = (box[0], box[1], box[2], box[3]) if box else None
    return boxes


def count_per_bucket(records: Sequence[Record]) -> dict[ImageSize, int]:
    """Images in each bucket, by aspect."""
    counts = Counter(record.bucket for record in records if record.keep and record.bucket)
    return dict(sorted(counts.items(), key=lambda item: (item[0][0] / item[0][1], item[0])))


def _reset_below_resolution(record: Record) -> Record:
    """An image that had no place the last time gets another chance."""
    refused = not record.keep and note_code(record.reason) == BELOW_MIN_RESOLUTION
    return replace(record, keep=True, reason=None) if refused else record


def _add_bucket_notes(record: Record, options: BucketOptions) -> Record:
    """Notes on what the crop and the enlargement cost; without a place, the image is set aside."""
    if not record.keep:
        stays = {"bucket": None} | ({} if record.crop_by == crops.USER else {"crop": None, "crop_by": None})
        return replace_notes(replace(record, **stays), NOTES, [])  # type: ignore[arg-type]
    if record.bucket is None:
        what = f"{record.width}x{record.height} would be enlarged to fill {min(options.tiers)}"
        reason = f"{BELOW_MIN_RESOLUTION}: {what} (add a smaller tier, or --upscale)"
        return replace_notes(replace(record, keep=False, reason=reason), NOTES, [])
    notes, scale, lost = [], crops.upscale_factor(record), crops.cropped_fraction(record)
    if scale > MAX_UNNOTICED_UPSCALE:
        notes.append(f"upscaled: enlarged {scale:.2f} times to fill its bucket")
    if lost > MAX_CROP_SHARE:
        notes.append(f"cropped: {lost:.0%} of the image is outside the crop")
    return replace_notes(record, NOTES, notes)
