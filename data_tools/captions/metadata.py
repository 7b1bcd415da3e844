"""Captions from the user's own metadata.jsonl, .csv or .parquet (the ImageFolder convention)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.captions.text import clean_caption, decode_text
from data_tools.listing import Listing
from data_tools.scan import resolve_inside
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.imaging import decode

CAPTION_COLUMNS = ("text", "caption", "prompt")
MASK_COLUMN = "mask_file_name"
CONDITIONING_COLUMNS = {"source": "source_file_name", "control": "control_file_name"}
FILE_COLUMNS = (MASK_COLUMN, *CONDITIONING_COLUMNS.values())
MAX_REPEATS = 1000  # kohya's `10_name`; above it the number is rather a year or an id
_KOHYA = re.compile(r"([1-9]\d*)_(.+)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_csv_cell(text: str) -> str:
    """A CSV value that no spreadsheet runs: what could be a formula gets an apostrophe (see `plain`)."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def unescape_csv_cell(text: Any) -> Any:
    """A CSV value without the apostrophe that keeps it from being run."""
    return text[1:] if isinstance(text, str) and text[:1] == "'" and text[1:].startswith(_FORMULA) else text


def parse_kohya_folder(name: str) -> tuple[int, str] | None:
    """(repeats, name) of a folder called as kohya's scripts want it, `10_sks dog`; None for any other."""
    match = _KOHYA.fullmatch(name)
    return (int(match[1]), match[2]) if match and int(match[1]) <= MAX_REPEATS else None


def read_metadata_captions(listing: Listing, encoding: str = "utf-8") -> dict[str, str]:
    """The caption by image from every metadata file of the user; the twin that lorakit wrote is left out.

    A row that names no image of the folder, names one twice or leads outside is a `DataError` with its line.
    """
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, where, row in _user_metadata_rows(listing, encoding):
        file = _row_image(listing, PurePosixPath(name).parent, row, where)
        if file in found:
            remedy = "delete one of the two rows"
            raise DataError(f"{file!r} has two rows, first {first[file]}", where=where, remedy=remedy)
        text = _row_caption(row, where)
        if text is not None:
            found[file] = clean_caption(text, name)[0]
            first[file] = where
    return found


def read_kohya_captions(listing: Listing, encoding: str = "utf-8") -> dict[str, str]:
    """The caption by image from the JSON of kohya's scripts: `{"path": {"caption": ..., "tags": ...}, ...}`.

    Paths are those of the machine that wrote it, with or without an ending: as much of a path's end counts as
    names an image here. Nothing is opened by such a path. Tags follow the caption, as kohya trains them.
    """
    names = {str(PurePosixPath(file).with_suffix("")): file for file in listing.images}
    names |= {file: file for file in listing.images}
    found: dict[str, str] = {}
    for name in listing.kohya:
        where = str(listing.root / name)
        text = decode_text(decode.read_file(resolve_inside(listing.root, name)), where, encoding)
        try:
            entries = json.loads(text)
            pairs = {key: [value.get(part) for part in ("caption", "tags")] for key, value in entries.items()}
        except (ValueError, AttributeError) as error:
            message = f"not the JSON of kohya's scripts: {error}"
            raise DataError(message, where=where, remedy="repair it, or move it away") from error
        for key, parts in pairs.items():
            steps = key.replace("\\", "/").split("/")
            ends = [str(PurePosixPath(name).parent.joinpath(*steps[i:])) for i in range(len(steps))]
            file = next((names[end] for end in ends if end in names), None)
            if file is None:
                raise DataError(
                    f"there is no image {key!r}", where=where, remedy="correct or delete the entry"
                )
            caption = ", ".join(part for part in parts if isinstance(part, str) and part.strip())
            if caption:
                found[file] = clean_caption(caption, name)[0]
    return found


def read_mask_column(listing: Listing, encoding: str = "utf-8") -> dict[str, str]:
    """The mask by image from the column `mask_file_name`; a mask that is not there is a `DataError`."""
    return {image: files[0] for image, files in read_file_column(listing, MASK_COLUMN, encoding).items()}


def read_file_column(listing: Listing, column: str, encoding: str = "utf-8") -> dict[str, list[str]]:
    """The files that a column such as `mask_file_name` names, by image; one, or a list of several.

    A file that is not there is a `DataError`.
    """
    found: dict[str, list[str]] = {}
    for name, where, row in _user_metadata_rows(listing, encoding):
        value = row.get(column)
        several = value if isinstance(value, list) else [value]
        named = [one for one in several if isinstance(one, str) and one]
        named = [
            one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one
        ]
        if named:
            folder = PurePosixPath(name).parent
            image = _row_image(listing, folder, row, where)
            found[image] = [_referenced_file(listing, folder, one, column, where) for one in named]
    return found


def _user_metadata_rows(listing: Listing, encoding: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(metadata file, where, row) of every metadata file but the twin that lorakit wrote."""
    folders = {PurePosixPath(file).parent for file in listing.images}
    users = {path.resolve() for path in manifest.user_metadata_files(listing.root, folders)}
    for name in listing.metadata:
        path = listing.root / name
        if path.resolve() in users:
            resolve_inside(listing.root, name)
            yield from ((name, where, row) for where, row in _rows(path, encoding))


def _referenced_file(listing: Listing, folder: PurePosixPath, name: str, column: str, where: str) -> str:
    """A file that a row names, as a path of the dataset."""
    manifest.check_dataset_path(name, where)
    file = str(folder / PurePosixPath(name))
    if not resolve_inside(listing.root, file).is_file():
        what = column.removesuffix("_file_name")
        raise DataError(f"there is no {what} {name!r}", where=where, remedy=f"correct {column}")
    return file


def _rows(path: Path, encoding: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of one metadata file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
            yield f"{path}, row {number}", row
    elif path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(decode_text(path.read_bytes(), str(path), encoding), newline=""))
        for row in reader:
            yield (
                f"{path}, line {reader.line_num}",
                {key: unescape_csv_cell(value) for key, value in row.items()},
            )
    else:
        for number, row in enumerate(storage.read_jsonl(path), 1):
            yield f"{path}, row {number}", row


def _row_image(listing: Listing, folder: PurePosixPath, row: Mapping[str, Any], where: str) -> str:
    """The image that a row names, as a path of the listing."""
    name = row.get("file_name")
    if not isinstance(name, str):
        remedy = f"name the column file_name; this row has {', '.join(map(str, row))}"
        raise DataError("a row without file_name", where=where, remedy=remedy)
    manifest.check_dataset_path(name, where)
    file = str(folder / PurePosixPath(name))
    if file in listing.image_set:
        return file
    spelt = listing.normal.get(listing.normalise(file))
    if spelt is None:
        message = f"there is no image {name!r}"
        raise DataError(message, where=where, remedy="correct file_name, or delete the row")
    return spelt


def _row_caption(row: Mapping[str, Any], where: str) -> str | None:
    for key in CAPTION_COLUMNS:
        value = row.get(key)
        if isinstance(value, str):
            return value
    if any(row.get(key) for key in FILE_COLUMNS):
        return None  # a row that names a mask need not caption too
    remedy = f"name the caption's column one of {', '.join(CAPTION_COLUMNS)}"
    raise DataError("a row without a caption", where=where, remedy=remedy)
