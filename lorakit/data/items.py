"""Training items: manifest records with the crop, size and frames that the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit import manifest
from lorakit.config.caption_use import CaptionUse
from lorakit.config.concepts import Concept
from lorakit.core import dataset_paths
from lorakit.core.errors import DataError
from lorakit.core.file_hashes import FileHashes
from lorakit.core.words import has_word
from lorakit.imaging import crops, video
from lorakit.manifest import Record
from lorakit.models.families.family import Family
from lorakit.models.families.video import VideoFamily


@dataclass(frozen=True)
class DatasetItem:
    """One image or video of a concept as the model sees it.

    `crop` is left, top, right, bottom in pixels of the upright image, `bucket` the size (width, height) after
    resizing. `frame_indices` are the frames used by base models that generate videos (an image has frame 0);
    they are empty for base models that generate images.
    """

    concept: Concept
    record: Record
    crop: tuple[int, int, int, int]
    bucket: tuple[int, int]
    frame_indices: tuple[int, ...] = ()

    @property
    def folder(self) -> Path:
        """The dataset folder, which has the manifest."""
        return self.concept.folder

    @property
    def path(self) -> Path:
        """The path of the image."""
        return dataset_paths.file_path(self.folder, self.record.file)

    @property
    def name(self) -> str:
        """The name of folder and file, for messages."""
        return f"{self.folder.name}/{self.record.file}"

    @property
    def repeats(self) -> int:
        """Number of times that an epoch contains the image."""
        return self.record.repeats * self.concept.repeats

    @property
    def caption_use(self) -> CaptionUse:
        """The use of the captions of the concept."""
        return self.concept.caption_use or CaptionUse()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape that all samples of one batch share: width, height, and frames of a video."""
        return (*self.bucket, len(self.frame_indices)) if self.frame_indices else self.bucket


@dataclass(frozen=True)
class ConceptRecords:
    """The records of a concept's folder, in the order of their files."""

    concept: Concept
    records: Sequence[Record]

    @property
    def captions(self) -> list[str]:
        """All captions."""
        return [caption.text for record in self.records for caption in record.captions]


def load_concepts(concepts: Sequence[Concept]) -> list[ConceptRecords]:
    """Load the records of each concept's folder; see `load_training_records`."""
    return [ConceptRecords(concept, load_training_records(concept.folder)) for concept in concepts]


def load_training_records(folder: Path) -> list[Record]:
    """Load the records that are trained on, by file; DataError if there are none, or one has no caption."""
    if not (folder / manifest.MANIFEST_FILE).is_file():
        raise DataError(
            "the dataset has no manifest.jsonl",
            where=str(folder),
            remedy=f"run `lorakit data prepare {folder}` (`lorakit train` does it automatically)",
        )
    records = sorted(
        (record for record in manifest.load_manifest(folder) if record.keep), key=lambda record: record.file
    )
    if not records:
        raise DataError(
            "the dataset has no image to train on", where=str(folder), remedy="see report.html in the folder"
        )
    without_caption = [record.file for record in records if not record.captions]
    if without_caption:
        raise DataError(
            f"{len(without_caption)} images have no caption: {', '.join(without_caption[:5])}",
            where=str(folder),
            remedy=f"run `lorakit data caption {folder} --class-noun dog --trigger sks`, or write .txt files",
        )
    return records


def subject_items(items: Sequence[DatasetItem]) -> dict[str | None, list[DatasetItem]]:
    """Return the items that show each subject, by its trigger word.

    These are, in the folders of a trigger, the items with it in a caption, or all of the folder if no caption
    has it. Without any trigger all items show one subject.
    """
    concepts = list(dict.fromkeys(item.concept for item in items))
    subjects: dict[str | None, list[DatasetItem]] = {}
    for concept in [concept for concept in concepts if concept.trigger] or concepts:
        own, trigger = [item for item in items if item.concept == concept], concept.trigger
        named = [
            item
            for item in own
            if trigger is not None
            and any(has_word(caption.text, trigger) for caption in item.record.captions)
        ]
        subjects.setdefault(trigger, []).extend(named or own)
    return subjects


def check_unchanged(folder: Path, records: Sequence[Record]) -> None:
    """Check that every file is still the one that the manifest describes; DataError if not.

    A file is not read if its size and times are those at which the dataset was prepared.
    """
    hashes = FileHashes.load(folder)
    for record in records:
        file = dataset_paths.file_path(folder, record.file)
        try:
            same = hashes.sha256(record.file, file) == record.sha256
        except OSError as error:
            raise DataError(f"cannot read the image: {error}", where=str(file)) from error
        if not same:
            raise DataError(
                "the file has changed since the dataset was prepared",
                where=str(file),
                remedy=f"run `lorakit data prepare {folder}` again",
            )


@dataclass(frozen=True)
class PlannedItems:
    """Items with their buckets; `from_manifest` is True if the manifest's own buckets were used."""

    items: list[DatasetItem]
    from_manifest: bool


def plan_items(data: ConceptRecords, resolution: int, size_multiple: int, batch_size: int) -> PlannedItems:
    """Choose the bucket and crop of each image of a concept.

    The manifest's buckets are used if all of them are multiples of `size_multiple` and the largest fits the
    resolution (a dataset with several resolutions has smaller ones). Otherwise new ones are assigned, by the
    same rule as in `lorakit data bucket`. Crops that the user set are kept.
    """
    concept, records = data.concept, data.records
    area = resolution * resolution
    sizes = [record.bucket for record in records if record.bucket]
    usable = len(sizes) == len(records) and not any(side % size_multiple for size in sizes for side in size)
    usable = usable and 0.8 <= max(width * height for width, height in sizes) / area <= 1.25
    if not usable:
        records = crops.assign_buckets_and_crops(records, resolution, size_multiple, batch_size=batch_size)
    items = [DatasetItem(concept, r, crops.training_crop(r), r.bucket) for r in records if r.bucket]
    return PlannedItems(items, from_manifest=usable)


def select_frames(
    items: Sequence[DatasetItem], family: Family, pipe: Any, max_frames: int
) -> list[DatasetItem]:
    """Return the items with the frames that are used of each, at most `max_frames`.

    Raises DataError for videos if the base model generates images only.
    """
    if not isinstance(family, VideoFamily):
        if videos := [item.name for item in items if item.record.video]:
            raise DataError(
                f"{len(videos)} videos, but {family.title} generates images: {', '.join(videos[:5])}",
                where="dataset",
                remedy="use a base model for videos, or set keep to false for them in manifest.jsonl",
            )
        return list(items)
    multiple = family.frame_multiple(pipe)
    return [
        replace(item, frame_indices=_frame_indices(item, family.fps, max_frames, multiple)) for item in items
    ]


def _frame_indices(item: DatasetItem, fps: float, max_frames: int, multiple: int) -> tuple[int, ...]:
    if item.record.video is None:
        return (0,)
    return video.frame_indices(item.record.video, fps, max_frames, multiple)
