"""Rows of table files beside images: CSV, TSV, JSON lines, JSON and parquet.

A row that cannot be read never ends the table: it is a problem with its line, and the rows after it are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.captions import columns
from data_tools.captions.text import decode_text
from data_tools.formats.table_rows import iter_rows
from lorakit.core import input_files
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.strict_csv import read_csv
from lorakit.core.strict_json import parse_json

Row = Mapping[str, Any]
OnProblem = Callable[[str, DataError], None]
"""Receives the place of a row ("line 3"; "" for the whole file) and what is wrong."""

MAX_BYTES = 128 << 20  # of one table of text
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
_DELIMITERS = (",", ";", "\t", "|")
_HALF_DECODED = re.compile("[\udc80-\udcff]")  # bytes that are not text, of a file of which the rest is
_BRACKETS = ("[", "]", "],")  # on lines of their own, of a list whose items are read line by line


def escape_csv_cell(text: str) -> str:
    """Return a CSV value that no spreadsheet runs: a possible formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def unescape_csv_cell(text: Any) -> Any:
    """Return a CSV value without the apostrophe of `escape_csv_cell`."""
    return text[1:] if isinstance(text, str) and text[:1] == "'" and text[1:].startswith(_FORMULA) else text


def read_rows(path: Path, encoding: str, on_problem: OnProblem) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a table; what cannot be read is passed to `on_problem`."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            for number, row in enumerate(iter_rows(path, columns.check_column_names), 1):
                yield f"row {number}", row
            return
        text = _decode(input_files.read_bytes(path, MAX_BYTES), str(path), encoding)
        rows = _csv_rows if suffix in (".csv", ".tsv") else _json_rows
        yield from rows(text, str(path), on_problem)
    except ConfigError:
        raise  # an unknown encoding, which no other file can be read with
    except DataError as error:
        on_problem("", error)


def _decode(data: bytes, where: str, encoding: str) -> str:
    """Decode a table; bytes that do not fit become marks, so that only their rows are lost."""
    try:
        return decode_text(data, where, encoding)
    except DataError:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise
        return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _check_decoded(text: str, where: str) -> None:
    if match := _HALF_DECODED.search(text):
        message = f"byte 0x{ord(match[0]) - 0xDC00:02x} is not UTF-8"
        remedy = "save the file as UTF-8, or give --caption-encoding cp1252 (or another)"
        raise DataError(message, where=where, remedy=remedy)


def _csv_rows(text: str, where: str, on_problem: OnProblem) -> Iterator[tuple[str, Row]]:
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)

    def on_error(line: int, error: DataError) -> None:
        on_problem(f"line {line}", error)

    for line, row in read_csv(text, where, delimiter=delimiter, on_error=on_error):
        place = f"line {line}"
        try:
            _check_decoded("\0".join(row.values()), f"{where}, {place}")
        except DataError as error:
            on_problem(place, error)
            continue
        yield place, {name.strip(): unescape_csv_cell(cell) for name, cell in row.items()}


def _json_rows(text: str, where: str, on_problem: OnProblem) -> Iterator[tuple[str, Row]]:
    """Yield the objects of JSON lines, of a list, or of an object with an entry for each image."""
    lines = text.split("\n")  # not `splitlines`: a caption may hold other line ends
    filled = [line.strip() for line in lines if line.strip()]
    if where.lower().endswith(".json") or not filled or not _is_row(filled[0]):
        try:
            yield from _entries(parse_json(text, where, allow_infinity=True), where, on_problem)
            return
        except DataError:
            if where.lower().endswith(".json"):
                raise
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if not stripped or stripped in _BRACKETS:
            continue
        place = f"line {number}"
        try:
            _check_decoded(stripped, f"{where}, {place}")
            row = parse_json(stripped.rstrip(",").rstrip(), f"{where}, {place}", allow_infinity=True)
            if not isinstance(row, dict):
                raise DataError("a line must hold one JSON object", where=f"{where}, {place}")
        except DataError as error:
            on_problem(place, error)
            continue
        yield place, row


def _is_row(line: str) -> bool:
    """Return True for an object that names an image."""
    try:
        value = parse_json(line.rstrip(","), "", allow_infinity=True)
    except DataError:
        return False
    return isinstance(value, dict) and _has_name(value)


def _entries(value: Any, where: str, on_problem: OnProblem) -> Iterator[tuple[str, Row]]:
    """Yield the entries of a list, of COCO's captions, or of an object with one list or keyed by image."""
    if isinstance(value, dict) and (joined := _coco_entries(value)):
        value = joined
    lists = [one for one in value.values() if _is_list_of_objects(one)] if isinstance(value, dict) else []
    if isinstance(value, dict) and _has_name(value):
        yield "entry 1", value
    elif isinstance(value, dict) and len(lists) != 1:
        for key, entry in value.items():
            row = dict(entry) if isinstance(entry, dict) else {"text": entry}
            yield repr(key), row if _has_name(row) else row | {"file_name": key}
    else:
        entries = lists[0] if lists else value if isinstance(value, list) else [value]
        for number, entry in enumerate(entries, 1):
            if isinstance(entry, dict):
                yield f"entry {number}", entry
            else:
                where_entry = f"{where}, entry {number}"
                on_problem(f"entry {number}", DataError("not a JSON object", where=where_entry))


def _coco_entries(value: Mapping[str, Any]) -> list[Row]:
    """Return the annotations of COCO's captions, each with the name of its image."""
    images, annotations = value.get("images"), value.get("annotations")
    if not (_is_list_of_objects(images) and _is_list_of_objects(annotations)):
        return []
    names = {str(image.get("id")): image.get("file_name") for image in images or ()}
    return [{**one, "file_name": names.get(str(one.get("image_id")))} for one in annotations or ()]


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _has_name(entry: Mapping[str, Any]) -> bool:
    return any(columns.folded(key) in columns.IMAGE_COLUMNS and isinstance(entry[key], str) for key in entry)
