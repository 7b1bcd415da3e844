"""Tables for the terminal: drawn by rich on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lorakit.core.visible_text import escape_name

Row = Sequence[object]


def format_table(columns: Sequence[str], rows: Sequence[Row], *, numeric: Sequence[str] = ()) -> str:
    """Return a table as aligned plain text, one line a row; `numeric` columns are aligned to the right."""
    cells = [list(columns), *([escape_name(str(value)) for value in row] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            value.rjust(width) if name in numeric else value.ljust(width)
            for name, value, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def print_table(columns: Sequence[str], rows: Sequence[Row], *, numeric: Sequence[str] = ()) -> None:
    """Print a table on stdout; on a terminal it is fitted to the width, in a pipe each row is one line."""
    if not sys.stdout.isatty():
        print(format_table(columns, rows, numeric=numeric))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(Text(name), justify="right" if name in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_name(str(value))) for value in row))
    Console().print(table)
