"""Datasets as others keep them: archives, webdataset tars, tables, folders in kohya's layout.

Everything is read and written piece by piece. What comes from outside is bounded (`bounded`) and ends up as
files of an ordinary dataset folder, which `scan` and `captions` then read like any other.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lorakit.imaging import decode
from lorakit.imaging.decode import ImageError
from lorakit.manifest import USER_METADATA_NOTE, Record


class DatasetFile(NamedTuple):
    """One file of a dataset on its way into a folder; `record` when the source tells all about the image.

    `settled` says that the name is a record's (an image or a mask) and must stay.
    """

    name: str  # relative, POSIX
    data: bytes
    record: Record | None = None
    settled: bool = False


def read_verified_bytes(folder: Path, record: Record) -> bytes:
    """The image's bytes, which must be those that were prepared."""
    data = decode.read_file(folder / record.file)
    if hashlib.sha256(data).hexdigest() != record.sha256:
        message, remedy = (
            "the file changed since it was prepared",
            f"run `lorakit data prepare {folder}` again",
        )
        raise ImageError("changed", message, where=str(folder / record.file), remedy=remedy)
    return data


def separate_mask_path(record: Record) -> str | None:
    """The record's mask, when it is a file of its own."""
    return record.mask if record.mask != record.file else None


def for_export(record: Record) -> Record:
    """The record as it travels: away from the metadata file that it came with."""
    return replace(record, notes=tuple(note for note in record.notes if note != USER_METADATA_NOTE))
