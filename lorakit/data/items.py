"""Training items: manifest records with the crop, size and frames that the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.imaging import crops, video
from lorakit.manifest import Record
from lorakit.models.families.family import Family
from lorakit.models.families.video import VideoFamily


@dataclass(frozen=True)
class DatasetItem:
    """One image as the model sees it: crop box in pixels of the upright image, size (width, height) after
    resizing. For bases that make clips, `frames` are the numbers of those kept; a picture has number 0."""

    record: Record
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    frames: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """What samples of one batch share."""
        return (*self.size, len(self.frames)) if self.frames else self.size


def load_training_records(folder: Path) -> list[Record]:
    """The records that are trained on; none, or one without a caption, is a `DataError`."""
    if not (folder / manifest.MANIFEST_FILE).is_file():
        raise DataError(
            "the dataset has no manifest.jsonl",
            where=str(folder),
            remedy=f"run `lorakit data prepare {folder}` (`lorakit train` does it by itself)",
        )
    records = [record for record in manifest.load_manifest(folder) if record.keep]
    if not records:
        raise DataError(
            "the dataset has no image to train on", where=str(folder), remedy="see report.html in the folder"
        )
    silent = [record.file for record in records if not record.captions]
    if silent:
        raise DataError(
            f"{len(silent)} images have no caption: {', '.join(silent[:5])}",
            where=str(folder),
            remedy=f"run `lorakit data caption {folder} --class-noun dog --trigger sks`, or write .txt files",
        )
    return records


def check_unchanged(folder: Path, records: Sequence[Record]) -> None:
    """Every file must still be the one that the manifest describes."""
    for record in records:
        file = folder / record.file
        try:
            same = storage.sha256_file(file) == record.sha256
        except OSError as error:
            raise DataError(f"cannot read the image: {error}", where=str(file)) from error
        if not same:
            raise DataError(
                "the file has changed since the dataset was prepared",
                where=str(file),
                remedy=f"run `lorakit data prepare {folder}` again",
            )


def plan_items(
    records: Sequence[Record], resolution: int, step: int, batch: int
) -> tuple[list[DatasetItem], bool]:
    """Each image's crop and size, and whether the manifest's own buckets served.

    The manifest's buckets are used when all of them suit the model's step and the largest the resolution (a
    dataset in tiers has smaller ones); otherwise new ones are chosen, by the same rule that `lorakit data
    bucket` uses. Crops that a person set stay.
    """
    area = resolution * resolution
    sizes = [record.bucket for record in records if record.bucket]
    own = len(sizes) == len(records) and not any(side % step for size in sizes for side in size)
    own = own and 0.8 <= max(width * height for width, height in sizes) / area <= 1.25
    chosen = records if own else crops.assign_buckets_and_crops(records, resolution, step, batch=batch)
    return [DatasetItem(r, crops.training_crop(r), r.bucket) for r in chosen if r.bucket], own


def select_frames(items: Sequence[DatasetItem], family: Family, pipe: Any, most: int) -> list[DatasetItem]:
    """The items with the frames that are kept of each, at most `most`; a base that makes pictures takes no
    clips."""
    if not isinstance(family, VideoFamily):
        if films := [item.record.file for item in items if item.record.clip]:
            raise DataError(
                f"{len(films)} clips, and {family.title} makes pictures: {', '.join(films[:5])}",
                where="dataset",
                remedy="use a base that makes clips, or set keep to false for them in manifest.jsonl",
            )
        return list(items)
    grid = family.frame_grid(pipe)
    kept = [
        video.frame_indices(i.record.clip, family.fps, most, grid) if i.record.clip else (0,) for i in items
    ]
    return [replace(item, frames=frames) for item, frames in zip(items, kept, strict=True)]
