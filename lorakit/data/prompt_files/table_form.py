"""Tables: CSV and TSV of any dialect with a column of prompts, such as DrawBench and PartiPrompts."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.core.errors import DataError
from lorakit.core.nearest import did_you_mean
from lorakit.data.prompt_files.keys import OWN_NAME, PROMPT_NAMES, own_values, plain_name, prompt_name
from lorakit.data.prompt_files.row import PromptRow, PromptText

_DELIMITERS = ("\t", ",", ";", "|")
_NO_DELIMITER = "\x1f"  # of a table with one column; no text has this character
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's
_EXAMPLE = 'name the column of the texts "prompt" in the first line, such as: prompt,negative,seed'


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    quote: str
    names: tuple[str, ...]


def is_table(source: PromptText) -> bool:
    """Return True if the first line names the columns of a table, or the file's name says that it is one."""
    dialect = _dialect(source)
    if dialect and prompt_name(dict.fromkeys(dialect.names)):
        return len(dialect.names) > 1 or plain_name(dialect.names[0]) in PROMPT_NAMES[:3]
    if source.suffix in (".csv", ".tsv") or all("\t" in line for _, line in source.lines()):
        return True
    names = [plain_name(name) for name in dialect.names] if dialect else []
    return len(names) > 1 and sum(name in OWN_NAME for name in names) > len(names) / 2


def read_table(source: PromptText) -> Iterator[PromptRow]:
    """Yield the prompts of a table. Raises DataError without a column of prompts."""
    dialect = _dialect(source)
    names = dialect.names if dialect else (source.first_line(),)
    if dialect is None or prompt_name(dict.fromkeys(names)) is None:
        meant = did_you_mean(names[0], PROMPT_NAMES) if len(names) == 1 else ""
        columns = ", ".join(map(repr, names[:6]))
        message = f"no column named Prompt among {columns}{meant}"
        raise DataError(message, where=f"{source.where}, line {_header(source)[0]}", remedy=_EXAMPLE)
    for number, row in _rows(source, dialect):
        place = f"line {number}"
        values, unused = own_values(row, f"{source.where}, {place}", table=True)
        yield PromptRow(place, values, unused)


def _header(source: PromptText) -> tuple[int, str]:
    """Return (number, text) of the line with the names of the columns."""
    for number, line in source.lines():
        if not _SEPARATOR_LINE.fullmatch(line):
            return number, line
    return 1, ""


def _dialect(source: PromptText) -> _Dialect | None:
    """Return the delimiter, quotation mark and column names of the first line; None without any column."""
    _, header = _header(source)
    separator = _SEPARATOR_LINE.fullmatch(source.first_line())
    best: _Dialect | None = None
    for delimiter in [separator[1]] if separator else _DELIMITERS:
        cells = [cell.strip() for cell in header.split(delimiter)]
        quote = next((mark for mark in "\"'" if cells[0][:1] == cells[0][-1:] == mark), '"')
        names = tuple(cell.strip(quote) for cell in cells)
        if not all(names) and delimiter != "|":
            names = tuple(name or f"column {number}" for number, name in enumerate(names, 1))
        dialect = _Dialect(delimiter if len(names) > 1 else _NO_DELIMITER, quote, names)
        is_better = best is None or (_num_known(dialect), len(names)) > (_num_known(best), len(best.names))
        best = dialect if is_better else best
    return best if header else None


def _num_known(dialect: _Dialect) -> int:
    return sum(plain_name(name) in {*OWN_NAME, *PROMPT_NAMES} for name in dialect.names)


def _rows(source: PromptText, dialect: _Dialect) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, cells by column) of each row; the line is that of the row's end.

    Raises DataError for a row that has more or fewer cells than the first line names columns.
    """
    names, (header, _) = dialect.names, _header(source)
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        where, remedy = f"{source.where}, line {header}", "rename or delete one of them"
        raise DataError(f"two columns are named {twice[:80]!r}", where=where, remedy=remedy)
    body = source.text.split("\n")[header:]
    for number, cells in _cells(body, dialect, source.where, header):
        if not any(cells) or (cells[0].startswith("#") and len(cells) < len(names)):
            continue
        if len(cells) != len(names):
            message = f"{len(cells)} cells under {len(names)} column names"
            remedy = f"put text that contains {dialect.delimiter!r} in double quotes"
            raise DataError(message, where=f"{source.where}, line {number}", remedy=remedy)
        yield number, dict(zip(names, cells, strict=True))


def _cells(
    lines: Sequence[str], dialect: _Dialect, where: str, header: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) in the first way of quoting that suits all rows, else in the first way."""
    ways: list[dict[str, Any]] = [{"quotechar": dialect.quote}]
    if any(f"\\{dialect.quote}" in line for line in lines):
        ways.append({"quotechar": dialect.quote, "escapechar": "\\", "doublequote": False})
    if dialect.delimiter in ("\t", _NO_DELIMITER):  # PartiPrompts has literal quotation marks
        ways.append({"quoting": csv.QUOTE_NONE})
    way = next((way for way in ways if _suits(lines, dialect, way)), ways[0])
    reader = _reader(lines, dialect, way)
    try:
        for cells in reader:
            yield header + reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        place = f"{where}, line {header + reader.line_num}"
        remedy = "put texts that contain quotation marks in double quotes, and write each of these twice"
        raise DataError(f"not a valid table: {error}", where=place, remedy=remedy) from error


def _suits(lines: Sequence[str], dialect: _Dialect, way: dict[str, Any]) -> bool:
    """Return True if all rows have as many cells as there are columns."""
    reader = _reader(lines, dialect, way)
    try:
        return all(len(cells) == len(dialect.names) for cells in reader if any(cells))
    except csv.Error:
        return False


def _reader(lines: Sequence[str], dialect: _Dialect, way: dict[str, Any]) -> Any:
    """Return a strict reader of lines; spaces after a delimiter do not count."""
    ends = [f"{line}\n" for line in lines]
    return csv.reader(ends, delimiter=dialect.delimiter, strict=True, skipinitialspace=True, **way)
