"""Values that templates insert as markup: badges, links, tables, grids, pairs of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from lorakit.reports.rendering import Block

Level = Literal["good", "warn", "bad", "note"]
"""The news that a color and a sign express: good, near a limit, bad, unknown."""

# A number with sign, interval or short unit: "12", "-3.5 %", "+1.2 [0.3, 2.1]", "480 MB", "3/4".
_NUMBER = re.compile(r"^[+\-−±]?\s*\d[\d\s.,+\-−–±×/:\[\]()%]*([a-zA-Zµ]{1,3}(/s)?)?$")
_EMPTY_CELLS = ("", "–")  # allowed in a column of numbers


def level_of(good: bool | None) -> Level:
    """Return the level of good or bad news; None is neutral."""
    return "note" if good is None else "good" if good else "bad"


@dataclass(frozen=True)
class Badge(Block):
    """A small label, such as a score under an image."""

    macro: ClassVar[str] = "badge"
    text: str
    level: Level | None = None
    tooltip: str = ""


@dataclass(frozen=True)
class Link(Block):
    """A link to a place of the page (`#images`) or to a file beside it."""

    macro: ClassVar[str] = "link"
    text: str
    address: str


@dataclass(frozen=True)
class Jump(Block):
    """A text whose click chooses the radio button with the id `target` and moves to it."""

    macro: ClassVar[str] = "jump"
    text: str
    target: str


def file_link(text: str, path: str) -> Link:
    """Return a link to a file, `path` relative to the page's folder with slashes."""
    relative = PurePosixPath(path)
    prefix = "" if relative.parts[:1] == ("..",) else "./"  # never read as a scheme or a host
    return Link(text, prefix + quote(str(relative).lstrip("/")))


@dataclass(frozen=True)
class Table(Block):
    """A table whose rows become blocks on a narrow page; the first cell of a row is its heading.

    Each row is as long as the headers; headers that are all empty are not shown. Columns with only numbers
    are aligned to the right.
    """

    macro: ClassVar[str] = "table"
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    """A cell is text, a number, a block, or a list of blocks."""
    label: str = ""
    """The table's name for screen readers."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise ValueError(f"a row has {len(row)} cells, the headers are {len(self.headers)}: {row!r}")

    @property
    def numeric(self) -> list[bool]:
        """True for each column that holds only numbers, and at least one; the first one holds headings."""
        columns = [[row[i] for row in self.rows] for i in range(len(self.headers))]
        known = [[cell for cell in column if str(cell).strip() not in _EMPTY_CELLS] for column in columns]
        return [
            bool(cells) and all(not hasattr(c, "__html__") and bool(_NUMBER.match(str(c))) for c in cells)
            for cells in [[], *known[1:]]
        ]


@dataclass(frozen=True)
class GridRow:
    """A row of a grid: its heading, its cells, and the name by which links reach it."""

    head: Any
    cells: Sequence[Sequence[Any]]
    """The parts of each cell."""
    anchor: str = ""


@dataclass(frozen=True)
class Grid(Block):
    """Images in rows and columns in a box that scrolls, with headings that stay in view."""

    macro: ClassVar[str] = "grid"
    column_heads: Sequence[Any]
    rows: Sequence[GridRow]
    label: str


@dataclass(frozen=True)
class Pair:
    """An image beside another one that explains it."""

    first: Any
    second: Any
    caption: str


@dataclass(frozen=True)
class Choice:
    """An option of a group of radio buttons; `count` is the number of things that it shows."""

    key: str
    label: str
    count: int | None = None
    badge: Badge | None = None


@dataclass(frozen=True)
class ViewedImage:
    """An image of the viewer with its facts; None for an image that does not exist, with the reason."""

    image: Any | None
    facts: Sequence[Any] = field(default_factory=tuple)


@dataclass(frozen=True)
class Shot:
    """The images of one prompt and seed, one for each column of the viewer."""

    title: str
    note: str
    images: Sequence[ViewedImage]
    filters: Sequence[str] = ()
    """Keys of the filters that show it, besides the first."""
    badge: Badge | None = None


@dataclass(frozen=True)
class Viewer(Block):
    """Two columns on the same prompt and seed, side by side or in turn; all choices are radio buttons.

    `first`, `second` and `start` are the columns and the shot that are shown at the beginning. The first
    filter shows all shots. `references` are images beside the samples.
    """

    macro: ClassVar[str] = "viewer"
    columns: Sequence[Choice]
    shots: Sequence[Shot]
    filters: Sequence[Choice]
    first: int
    second: int
    start: int = 0
    references: Sequence[Any] = ()

    @property
    def views(self) -> list[Choice]:
        """The ways to show the two columns."""
        return [
            Choice("both", "side by side"),
            Choice("first", "first"),
            Choice("second", "second"),
            Choice("difference", "difference"),
        ]
