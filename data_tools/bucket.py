"""Give every kept image its training shape and crop box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_tools.scan import replace_notes
from lorakit import buckets
from lorakit.buckets import Assignment, Size
from lorakit.errors import ConfigError
from lorakit.manifest import Record

NOTES = frozenset({"cropped", "upscaled"})
HEAVY_CROP = 0.10
UPSCALED = 1.02  # below that, nobody sees it


@dataclass(frozen=True)
class BucketOptions:
    """`resolution` is the side of the square bucket, `step` what both sides must be a multiple of; pixels."""

    resolution: int = 1024
    step: int = 16
    batch: int = 1
    mode: str = "auto"

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any image is opened."""
        if self.batch < 1:
            raise ConfigError(f"batch must be at least 1, not {self.batch}", where="batch", remedy="use 1")
        buckets.plan([(1, 1)], self.resolution, self.step, mode=self.mode, batch=self.batch)


def assign(records: Sequence[Record], options: BucketOptions) -> list[Record]:
    """The records with bucket and crop; refused images have neither."""
    kept = [record for record in records if record.keep]
    planned = buckets.plan(
        [record.size for record in kept],
        options.resolution,
        options.step,
        mode=options.mode,
        batch=options.batch,
    )
    by_file = dict(zip((record.file for record in kept), planned, strict=True))
    return [_with(record, by_file.get(record.file)) for record in records]


def crop_share(record: Record) -> float:
    """The share of the image, 0..1, that its crop box leaves out."""
    if record.crop is None:
        return 0.0
    left, top, right, bottom = record.crop
    return 1 - (right - left) * (bottom - top) / (record.width * record.height)


def count(records: Sequence[Record]) -> dict[Size, int]:
    """Images in each bucket, by aspect."""
    counts = Counter(record.bucket for record in records if record.keep and record.bucket)
    return dict(sorted(counts.items(), key=lambda item: (item[0][0] / item[0][1], item[0])))


def _with(record: Record, assignment: Assignment | None) -> Record:
    if assignment is None:
        return replace_notes(replace(record, bucket=None, crop=None), NOTES, [])
    placed = replace(record, bucket=assignment.bucket, crop=assignment.crop)
    notes = []
    if assignment.scale > UPSCALED:
        notes.append(f"upscaled: enlarged {assignment.scale:.2f} times to fill its bucket")
    if crop_share(placed) > HEAVY_CROP:
        notes.append(f"cropped: {crop_share(placed):.0%} of the image is outside the crop")
    return replace_notes(placed, NOTES, notes)
