"""Captions from the user's own metadata.jsonl, .csv or .parquet (the ImageFolder convention)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.listing import Listing
from data_tools.scan import locate
from data_tools.text import clean, decode_text
from lorakit import manifest, storage
from lorakit.errors import DataError

TEXT_KEYS = ("text", "caption", "prompt")


def read_metadata(listing: Listing, encoding: str = "utf-8") -> dict[str, str]:
    """The caption by image from every metadata file of the user; the twin that lorakit wrote is left out.

    A row that names no image of the folder, names one twice or leads outside is a `DataError` with its line.
    """
    folders = {PurePosixPath(file).parent for file in listing.images}
    own = {path.resolve() for path in manifest.own_metadata(listing.root, folders)}
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for name in listing.metadata:
        path = listing.root / name
        if path.resolve() not in own:
            continue
        locate(listing.root, name)
        for where, row in _rows(path, encoding):
            file = _file(listing, PurePosixPath(name).parent, row, where)
            if file in found:
                remedy = "delete one of the two rows"
                raise DataError(f"{file!r} has two rows, first {first[file]}", where=where, remedy=remedy)
            found[file] = clean(_text(row, where), name)[0]
            first[file] = where
    return found


def _rows(path: Path, encoding: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of one metadata file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet  # type: ignore[import-untyped]

        for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
            yield f"{path}, row {number}", row
    elif path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(decode_text(path.read_bytes(), str(path), encoding), newline=""))
        for row in reader:
            yield f"{path}, line {reader.line_num}", row
    else:
        for number, row in enumerate(storage.read_jsonl(path), 1):
            yield f"{path}, row {number}", row


def _file(listing: Listing, folder: PurePosixPath, row: Mapping[str, Any], where: str) -> str:
    """The image that a row names, as a path of the listing."""
    name = row.get("file_name")
    if not isinstance(name, str):
        remedy = f"name the column file_name; this row has {', '.join(map(str, row))}"
        raise DataError("a row without file_name", where=where, remedy=remedy)
    manifest.check_path(name, where)
    file = str(folder / PurePosixPath(name))
    if file in listing.image_set:
        return file
    spelt = listing.normal.get(listing.normalise(file))
    if spelt is None:
        message = f"there is no image {name!r}"
        raise DataError(message, where=where, remedy="correct file_name, or delete the row")
    return spelt


def _text(row: Mapping[str, Any], where: str) -> str:
    for key in TEXT_KEYS:
        value = row.get(key)
        if isinstance(value, str):
            return value
    remedy = f"name the caption's column one of {', '.join(TEXT_KEYS)}"
    raise DataError("a row without a caption", where=where, remedy=remedy)
