"""Find the conditioning images of each image (sources of an edit, controls), and attach them to the records.

A source is a file `a.source.png` beside `a.jpg` (several: `a.source1.png`, `a.source2.png`) or
`sources/a.png`, or is named in the column `source_file_name` of a metadata file, as one path or a list; a
control is `a.control.png`, `a-condlabel.png`, `controls/a.png`, or is named in `control_file_name`. These
files are not trained on as images. Generated ones are in a hidden folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_tools.captions import metadata
from data_tools.conditioning.masks import GENERATED
from data_tools.listing import Listing, file_stem
from data_tools.scan import replace_notes, resolve_inside
from lorakit.core import checksums, dataset_paths
from lorakit.imaging import decode, masks
from lorakit.imaging.decode import ImageError
from lorakit.manifest import ConditioningImage, Record, change_record

CONTROL_FOLDER = ".lorakit-controls"  # of generated controls; hidden, so that no tool uses them as images
NOTES = frozenset({"conditioning_image_unreadable", "conditioning_image_aspect_mismatch"})
CONTROL_LABEL = "-condlabel"  # OneTrainer's end of the names of conditioning images
_FOLDER_NAME = re.compile(r"(?P<type>sources|controls)(?:_(?P<number>\d+))?/(?P<stem>.+)")
_SIDECAR_NAME = re.compile(r"(?P<stem>.+)\.(?P<type>source|control)(?P<number>\d*)")


@dataclass(frozen=True, order=True)
class ConditioningFile:
    """A conditioning image of an image, not yet opened: its type (source, control), and metadata or file."""

    type: str
    file: str
    origin: str


def separate_conditioning_files(listing: Listing) -> tuple[Listing, dict[str, list[ConditioningFile]]]:
    """Return the listing without conditioning images, and the conditioning images of each image."""
    by_image: dict[str, list[ConditioningFile]] = defaultdict(list)
    for image_type, column in metadata.CONDITIONING_COLUMNS.items():
        for image, files in listing.tables.files.get(column, {}).items():
            by_image[image] += [ConditioningFile(image_type, file, "metadata") for file in files]
    in_metadata = {file.file for files in by_image.values() for file in files}
    stems = {file_stem(name): name for name in listing.images if name not in in_metadata}
    sidecars: dict[str, list[tuple[str, int, ConditioningFile]]] = defaultdict(list)
    orphans = []
    for name in listing.images:
        label = None if name in in_metadata else _label(name, stems)
        if label is None:
            continue
        owner = stems.get(label.stem)
        if owner is None:
            orphans.append(name)
            continue
        file = ConditioningFile(label.type, name, "file")
        sidecars[owner].append((file.type, label.number, file))
    for image, numbered in sidecars.items():
        metadata_types = {file.type for file in by_image[image]}  # metadata goes before files
        by_image[image] += [
            file for image_type, _, file in sorted(numbered) if image_type not in metadata_types
        ]
    excluded = in_metadata | set(orphans) | {file.file for group in sidecars.values() for *_, file in group}
    images = tuple(name for name in listing.images if name not in excluded)
    other_files = tuple(sorted({*listing.other_files, *orphans}))
    separated = replace(listing, images=images, other_files=other_files)
    return separated, {image: files for image, files in by_image.items() if files}


class _Label(NamedTuple):
    """The image that a conditioning image belongs to by its name, as the name without extension."""

    stem: str
    type: str
    number: int


def _label(name: str, stems: Mapping[str, str]) -> _Label | None:
    """Return the label of a conditioning image, None for other names.

    In `controls/` and `sources/`, only images with the name of another image are conditioning images.
    """
    stem = file_stem(name)
    if match := _SIDECAR_NAME.fullmatch(stem):
        return _Label(match["stem"], match["type"], int(match["number"] or 0))
    if stem.endswith(CONTROL_LABEL):
        return _Label(stem.removesuffix(CONTROL_LABEL), "control", 0)
    match = _FOLDER_NAME.fullmatch(stem)
    if match and match["stem"] in stems:
        return _Label(match["stem"], match["type"].rstrip("s"), int(match["number"] or 0))
    return None


def attach_conditioning(
    listing: Listing, records: Sequence[Record], files_by_image: Mapping[str, Sequence[ConditioningFile]]
) -> list[Record]:
    """Return the records with their conditioning images; one that cannot be read is noted and not used."""
    return [_attach_to_record(listing, record, files_by_image.get(record.file, ())) for record in records]


def generated_stem(record: Record) -> str:
    """Return the first part of the name of a control generated from the image; its type follows."""
    return record.content_hash[:16]


def with_generated_control(record: Record, control: ConditioningImage) -> Record:
    """Return the record with a generated control instead of an earlier generated one."""
    plain = without_generated_controls(record)
    return replace(plain, conditioning_images=(*plain.conditioning_images, control))


def without_generated_controls(record: Record) -> Record:
    """Return the record with the user's conditioning images only."""
    kept = tuple(image for image in record.conditioning_images if not image.is_generated)
    return replace(record, conditioning_images=kept)


def read_conditioning_image(root: Path, file: ConditioningFile) -> ConditioningImage:
    """Open a file and return its entry for the record; raises `ImageError` if it is not an image."""
    path = resolve_inside(root, file.file)
    width, height = decode.decode_image(path).size
    return ConditioningImage(file.type, file.file, checksums.sha256_file(path), width, height, file.origin)


def _attach_to_record(listing: Listing, record: Record, files: Sequence[ConditioningFile]) -> Record:
    plain = replace_notes(record, NOTES, [])
    if not record.keep:
        return change_record(plain, conditioning_images=())
    notes: list[str] = []
    attached: list[ConditioningImage] = []
    known = {(image.type, image.file, image.sha256): image for image in record.conditioning_images}
    for file in files:
        try:
            digest = listing.earlier.hashes.sha256(file.file, resolve_inside(listing.root, file.file))
            image = known.get((file.type, file.file, digest)) or read_conditioning_image(listing.root, file)
        except ImageError as error:
            notes.append(f"conditioning_image_unreadable: {file.file}: {error.reason}; not used")
            continue
        if not masks.same_aspect((image.width, image.height), record.size):
            size = f"{image.width}x{image.height}"
            text = f"{file.file} measures {size}; its middle is used"
            notes.append(f"conditioning_image_aspect_mismatch: {text}")
        attached.append(replace(image, origin=file.origin))
    attached_types = {image.type for image in attached}
    attached += [
        image
        for image in record.conditioning_images
        if image.type not in attached_types and _generated_is_current(listing, record, image)
    ]
    return replace_notes(change_record(plain, conditioning_images=tuple(attached)), NOTES, notes)


def _generated_is_current(listing: Listing, record: Record, control: ConditioningImage) -> bool:
    """Return True if the control was generated from the present image."""
    named_for_image = PurePosixPath(control.file).name.startswith(generated_stem(record))
    is_generated = control.origin.startswith(GENERATED) and named_for_image
    return is_generated and dataset_paths.file_path(listing.folder, control.file).is_file()
