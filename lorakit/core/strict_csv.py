"""Strict CSV and TSV: each row has as many cells as the first line names columns.

Python's reader puts the cells of a row that is too long under no name, ends a text at a lost quotation mark
only at the end of the file, and raises errors of its own; here each is a DataError that names the line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from lorakit.core.errors import DataError


def read_csv(
    text: str, where: str, *, delimiter: str = ",", has_quotes: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, cells by column) of each row. Raises DataError for a row that is not as the first line.

    The line is that of the row's end. Empty lines are skipped.
    """
    lines = io.StringIO(text, newline="")
    if has_quotes:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    try:
        names = next(reader, [])
        twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if twice is not None:
            remedy = "rename or delete one of them"
            raise DataError(f"two columns are named {twice[:80]!r}", where=f"{where}, line 1", remedy=remedy)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(names):
                message = f"{len(cells)} cells under {len(names)} column names"
                in_quotes = f"put text that contains {delimiter!r} in double quotes" if has_quotes else None
                raise DataError(message, where=f"{where}, line {reader.line_num}", remedy=in_quotes)
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"not a valid table: {error}", where=f"{where}, line {reader.line_num}") from error
