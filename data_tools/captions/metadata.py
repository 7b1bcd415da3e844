"""Captions from the user's own metadata.jsonl, .csv or .parquet (the ImageFolder convention)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.captions import columns
from data_tools.captions.text import clean_caption, decode_text
from data_tools.formats.table_rows import iter_rows
from data_tools.listing import Listing
from data_tools.scan import resolve_inside
from lorakit import manifest
from lorakit.core import input_files, storage
from lorakit.core.errors import DataError
from lorakit.core.strict_csv import read_csv
from lorakit.core.strict_json import parse_json
from lorakit.imaging import decode

MASK_COLUMN = "mask_file_name"
CONDITIONING_COLUMNS = {"source": "source_file_name", "control": "control_file_name"}
FILE_COLUMNS = (MASK_COLUMN, *CONDITIONING_COLUMNS.values())
MAX_REPEATS = 1000  # in kohya's `10_name`; a larger number is a year or an id
MAX_METADATA_BYTES = 128 << 20  # of one metadata.csv
_KOHYA_REMEDY = "repair it, or move it away"
_KOHYA = re.compile(r"([1-9]\d*)_(.+)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_csv_cell(text: str) -> str:
    """Return a CSV value that no spreadsheet runs: a possible formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def unescape_csv_cell(text: Any) -> Any:
    """Return a CSV value without the apostrophe of `escape_csv_cell`."""
    return text[1:] if isinstance(text, str) and text[:1] == "'" and text[1:].startswith(_FORMULA) else text


def parse_kohya_folder(name: str) -> tuple[int, str] | None:
    """Return (repeats, name) of a folder named like `10_sks dog` for kohya's scripts; None for any other."""
    match = _KOHYA.fullmatch(name)
    return (int(match[1]), match[2]) if match and int(match[1]) <= MAX_REPEATS else None


@dataclass(frozen=True)
class MetadataCaption:
    """The captions of an image in a metadata file, and notes."""

    texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_metadata_captions(listing: Listing, encoding: str = "utf-8") -> dict[str, MetadataCaption]:
    """Read the captions by image from the user's metadata files, without the one that lorakit wrote.

    A row without an image of the folder, or a second row for one, is a `DataError` with its line.
    """
    captions: dict[str, MetadataCaption] = {}
    first: dict[str, str] = {}
    for name, where, row in _user_metadata_rows(listing, encoding):
        file = _row_image(listing, PurePosixPath(name).parent, row, where)
        if file in first:
            remedy = "delete one of the two rows"
            raise DataError(f"{file!r} has two rows, first {first[file]}", where=where, remedy=remedy)
        first[file] = where
        unread = columns.unread_columns(row, (*columns.CAPTION_COLUMNS, *FILE_COLUMNS))
        texts = _row_captions(row, unread, where)
        captions[file] = _metadata_caption(texts, name, unread)
        if not any(captions[file].texts or [row.get(key) for key in FILE_COLUMNS]):
            empty = f"caption_empty: {where.removeprefix(str(listing.root) + '/')}"
            captions[file] = replace(captions[file], notes=(*captions[file].notes, empty))
    return captions


def _metadata_caption(texts: Sequence[str], name: str, unread: Sequence[str]) -> MetadataCaption:
    notes = [columns.unread_note(unread)] if unread else []
    cleaned = []
    for text in texts:
        line, changes = clean_caption(text, name)
        notes += changes
        cleaned += [line] if line else []
    return MetadataCaption(tuple(dict.fromkeys(cleaned)), tuple(notes))


def read_kohya_captions(listing: Listing, encoding: str = "utf-8") -> dict[str, MetadataCaption]:
    """Read the captions by image from kohya's JSON: `{"path": {"caption": ..., "tags": ...}, ...}`.

    Paths are those of the machine that wrote the file, with or without extension: the longest end of a path
    that names an image here is used. No such path is opened. Tags follow the caption, as kohya trains them.
    """
    names = {str(PurePosixPath(file).with_suffix("")): file for file in listing.images}
    names |= {file: file for file in listing.images}
    captions: dict[str, MetadataCaption] = {}
    first: dict[str, str] = {}
    for name in listing.kohya_metadata:
        where = str(listing.root / name)
        text = decode_text(
            decode.read_file(resolve_inside(listing.root, name), MAX_METADATA_BYTES), where, encoding
        )
        entries = parse_json(text, where, remedy=_KOHYA_REMEDY)
        if not isinstance(entries, dict) or not all(isinstance(value, dict) for value in entries.values()):
            raise DataError("not the JSON of kohya's scripts", where=where, remedy=_KOHYA_REMEDY)
        for key, entry in entries.items():
            file = _kohya_image(names, PurePosixPath(name).parent, key)
            if file is None:
                message = f"there is no image {key!r}"
                raise DataError(message, where=where, remedy="correct or delete the entry")
            if file in first:
                message = f"{file!r} has two entries: {first[file]!r} and {key!r}"
                raise DataError(message, where=where, remedy="delete one of the two entries")
            first[file] = key
            parts = [
                _kohya_text(entry.get(part), f"{where}: {key!r}, {part}") for part in ("caption", "tags")
            ]
            unread = columns.unread_columns(entry, ("caption", "tags"))
            captions[file] = _metadata_caption([", ".join(filter(None, parts))], name, unread)
    return captions


def _kohya_image(names: Mapping[str, str], folder: PurePosixPath, key: str) -> str | None:
    """Return the image that the longest end of a path names, or None."""
    parts = key.replace("\\", "/").split("/")
    ends = (str(folder.joinpath(*parts[i:])) for i in range(len(parts)))
    return next((names[end] for end in ends if end in names), None)


def _kohya_text(value: Any, where: str) -> str:
    """Return a caption, or tags as text or list, as one text."""
    items = value if isinstance(value, list) else [value]
    texts = [item.strip() for item in items if isinstance(item, str)]
    if value is not None and len(texts) < len(items):
        raise DataError("neither text nor a list of texts", where=where, remedy=_KOHYA_REMEDY)
    return ", ".join(filter(None, texts))


def read_mask_column(listing: Listing, encoding: str = "utf-8") -> dict[str, str]:
    """Read the mask by image from the column `mask_file_name`; a missing file is a `DataError`."""
    return {image: files[0] for image, files in read_file_column(listing, MASK_COLUMN, encoding).items()}


def read_file_column(listing: Listing, column: str, encoding: str = "utf-8") -> dict[str, list[str]]:
    """Read the files by image from a column such as `mask_file_name`: one file, or a list of several.

    A missing file is a `DataError`.
    """
    files_by_image: dict[str, list[str]] = {}
    for name, where, row in _user_metadata_rows(listing, encoding):
        value = row.get(column)
        values = value if isinstance(value, list) else [value]
        file_names = [file for file in values if isinstance(file, str) and file]
        if file_names:
            folder = PurePosixPath(name).parent
            image = _row_image(listing, folder, row, where)
            files_by_image[image] = [
                _referenced_file(listing, folder, file, column, where) for file in file_names
            ]
    return files_by_image


def _user_metadata_rows(listing: Listing, encoding: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (metadata file, where, row) of the user's metadata files."""
    folders = {PurePosixPath(file).parent for file in listing.images}
    user_files = {path.resolve() for path in manifest.user_metadata_files(listing.root, folders)}
    for name in listing.metadata:
        path = listing.root / name
        if path.resolve() in user_files:
            resolve_inside(listing.root, name)
            yield from ((name, where, row) for where, row in _rows(path, encoding))


def _referenced_file(listing: Listing, folder: PurePosixPath, name: str, column: str, where: str) -> str:
    """Return a file that a row names, relative to the dataset folder."""
    manifest.check_dataset_path(name, where)
    file = str(folder / PurePosixPath(name))
    if not resolve_inside(listing.root, file).is_file():
        what = column.removesuffix("_file_name")
        raise DataError(f"there is no {what} {name!r}", where=where, remedy=f"correct {column}")
    return file


def _rows(path: Path, encoding: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, row) of one metadata file."""
    if path.suffix == ".parquet":
        for number, row in enumerate(iter_rows(path, columns.check_column_names), 1):
            yield f"{path}, row {number}", row
    elif path.suffix == ".csv":
        text = decode_text(input_files.read_bytes(path, MAX_METADATA_BYTES), str(path), encoding)
        for number, row in read_csv(text, str(path)):
            cells = {name: unescape_csv_cell(value) for name, value in row.items()}
            yield f"{path}, line {number}", cells
    else:
        for number, row in enumerate(storage.read_jsonl(path), 1):
            yield f"{path}, row {number}", row


def _row_image(listing: Listing, folder: PurePosixPath, row: Mapping[str, Any], where: str) -> str:
    """Return the image that a row names, as in the listing."""
    name = row.get("file_name")
    if not isinstance(name, str):
        remedy = f"name the column file_name; this row has the columns {', '.join(map(str, row))}"
        raise DataError("a row without file_name", where=where, remedy=remedy)
    manifest.check_dataset_path(name, where)
    file = str(folder / PurePosixPath(name))
    if file in listing.image_set:
        return file
    normalized = listing.images_by_normalized_name.get(listing.normalize_name(file))
    if normalized is None:
        message = f"there is no image {name!r}"
        raise DataError(message, where=where, remedy="correct file_name, or delete the row")
    return normalized


def _row_captions(row: Mapping[str, Any], unread: Sequence[str], where: str) -> list[str]:
    """Return the captions of a row, [] if it only names a mask or a conditioning image."""
    texts = columns.caption_texts(row, where)
    if texts is not None or any(row.get(key) for key in FILE_COLUMNS):
        return texts or []
    remedy = f"name the column of captions {' or '.join(columns.CAPTION_COLUMNS[:2])}"
    if unread:
        remedy += f"; this table has {', '.join(unread)}"
    raise DataError("a row without a caption", where=where, remedy=remedy)
