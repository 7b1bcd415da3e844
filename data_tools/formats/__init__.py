"""Dataset formats: archives, webdataset tars, tables, and folders in kohya's layout.

Everything is read and written piece by piece. Input has limits (`archives`) and becomes files of an ordinary
dataset folder, which `scan` and `captions` read like any other.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lorakit.core import dataset_paths
from lorakit.imaging import decode
from lorakit.imaging.decode import ImageError
from lorakit.manifest import USER_METADATA_NOTE, Record


class DatasetFile(NamedTuple):
    """A file to write to a dataset folder; `record` if the source has the image's manifest record.

    `keep_name` means that a record contains the name (of an image or a mask), so it must not change.
    """

    name: str  # relative, POSIX
    data: bytes
    record: Record | None = None
    keep_name: bool = False


class RenamedRecord(NamedTuple):
    """A record, and the record that it becomes in the export."""

    old: Record
    new: Record


def read_verified_bytes(folder: Path, record: Record) -> bytes:
    """Return the image's bytes; an `ImageError` if they changed since it was prepared."""
    path = dataset_paths.file_path(folder, record.file)
    data = decode.read_file(path)
    if hashlib.sha256(data).hexdigest() != record.sha256:
        message, remedy = (
            "the file changed since it was prepared",
            f"run `lorakit data prepare {folder}` again",
        )
        raise ImageError("changed", message, where=str(path), remedy=remedy)
    return data


def separate_mask_path(record: Record) -> str | None:
    """Return the record's mask if it is a separate file."""
    return record.mask if record.mask != record.file else None


def for_export(record: Record) -> Record:
    """Return the record for an export: without the note about the user's metadata file."""
    return replace(record, notes=tuple(note for note in record.notes if note != USER_METADATA_NOTE))
