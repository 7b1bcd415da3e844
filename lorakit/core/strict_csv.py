"""Strict CSV and TSV: each row has as many cells as the first line names columns.

Python's reader puts the cells of a row that is too long under no name, ends a text at a lost quotation mark
only at the end of the file, and raises errors of its own; here each is a DataError that names the line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator

from lorakit.core.errors import DataError

_MAX_LOST_QUOTES = 100  # after each, the rest of the text is read again


def read_csv(
    text: str,
    where: str,
    *,
    delimiter: str = ",",
    has_quotes: bool = True,
    on_error: Callable[[int, DataError], None] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, cells by column) of each row. Raises DataError for a row that is not as the first line.

    The line is that of the row's end. Empty lines are skipped. With `on_error`, such a row is passed to it
    with its line, and the rows after it are read.
    """
    lines = list(io.StringIO(text, newline=""))
    names: list[str] | None = None
    start = 0
    for _ in range(_MAX_LOST_QUOTES):
        reader = _Reader(lines, start, delimiter, has_quotes)
        try:
            if names is None:
                names = next(reader, [])
                _check_names(names, where)
            for cells in reader:
                if not any(cells):
                    continue
                if len(cells) == len(names):
                    yield reader.line, dict(zip(names, cells, strict=True))
                    continue
                message = f"{len(cells)} cells under {len(names)} column names"
                in_quotes = f"put text that contains {delimiter!r} in double quotes" if has_quotes else None
                error = DataError(message, where=f"{where}, line {reader.line}", remedy=in_quotes)
                if on_error is None:
                    raise error
                on_error(reader.line, error)
            return
        except csv.Error as problem:
            first = reader.first_line
            place = f"{where}, line {first if on_error else reader.line}"
            error = DataError(f"not a valid table: {problem}", where=place)
            if on_error is None or names is None:
                raise error from problem
            on_error(first, error)
            start = first  # the line after the one with the lost quotation mark
    if on_error is not None:
        message = f"more than {_MAX_LOST_QUOTES} lost quotation marks; the rest is not read"
        on_error(start + 1, DataError(message, where=f"{where}, line {start + 1}"))


class _Reader:
    """The rows of some lines; `first_line` and `line` are those of the row's start and end, from 1."""

    def __init__(self, lines: list[str], start: int, delimiter: str, has_quotes: bool) -> None:
        if has_quotes:
            self._rows = csv.reader(lines[start:], delimiter=delimiter, strict=True)
        else:
            self._rows = csv.reader(lines[start:], delimiter=delimiter, quoting=csv.QUOTE_NONE)
        self._start = start
        self.first_line = start + 1

    @property
    def line(self) -> int:
        return self._start + self._rows.line_num

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> list[str]:
        self.first_line = self.line + 1
        return next(self._rows)


def _check_names(names: list[str], where: str) -> None:
    """Raise `DataError` for two columns of one name, of which a reader would lose one."""
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        remedy = "rename or delete one of them"
        raise DataError(f"two columns are named {twice[:80]!r}", where=f"{where}, line 1", remedy=remedy)
