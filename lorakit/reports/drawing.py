"""Charts as inline SVG: sizes, axes, ticks and shapes; the colors and text sizes are in the style sheet.

Every chart has two drawings, for wide and for narrow pages, so that its text is readable on both; a
chart for half of the page has the narrow drawing only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lorakit.reports.rendering import Block


@dataclass(frozen=True)
class ChartSize:
    """A drawing's size in SVG user units; a letter is about `letter` units wide."""

    kind: Literal["wide", "narrow"]
    width: int
    height: int
    letter: float
    tick_distance: int

    @property
    def left(self) -> int:
        """The left edge of the plot area."""
        return round(8.5 * self.letter)

    @property
    def right(self) -> int:
        """The right edge of the plot area."""
        return self.width - 14

    @property
    def bottom(self) -> int:
        """The lower edge of the plot area."""
        return self.height - 48


WIDE, NARROW = ChartSize("wide", 960, 310, 7.6, 125), ChartSize("narrow", 420, 270, 7.2, 85)
TOP = 14  # the upper edge of the plot area
SIZES = {False: (WIDE, NARROW), True: (NARROW,)}
"""The sizes of a chart by `half_width`."""


Attributes = Mapping[str, str | float]


@dataclass(frozen=True)
class Shape:
    """An SVG element. `title` is its tooltip, `link` the place of the page that a click leads to."""

    name: str
    attributes: Attributes
    text: str = ""
    title: str = ""
    link: str = ""


@dataclass(frozen=True)
class Drawing:
    """The shapes of a chart in one size."""

    size: ChartSize
    shapes: Sequence[Shape]

    @property
    def kind(self) -> str:
        """`wide` or `narrow`."""
        return self.size.kind

    @property
    def width(self) -> int:
        """The width in SVG user units."""
        return self.size.width

    @property
    def height(self) -> int:
        """The height in SVG user units."""
        return self.size.height


@dataclass(frozen=True)
class Chart(Block):
    """A chart with its title and legend (names and numbers of colors); without drawings it says so."""

    macro: ClassVar[str] = "chart"
    title: str
    description: str = ""
    """The chart's name for screen readers."""
    drawings: Sequence[Drawing] = ()
    legend: Sequence[tuple[str, int]] = field(default_factory=tuple)
    half: bool = False

    @property
    def has_links(self) -> bool:
        """True if a shape is a link."""
        return any(shape.link for drawing in self.drawings for shape in drawing.shapes)


def line(x1: float, y1: float, x2: float, y2: float, css_class: str = "") -> Shape:
    """Return a straight line."""
    css = {"class": css_class} if css_class else {}
    return Shape("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, **css})


def label(
    x: float, y: float, text: str, *, anchor: str = "start", css_class: str = "", rotate: int = 0
) -> Shape:
    """Return text at a position; `anchor` is start, middle or end."""
    css = {"class": css_class} if css_class else {}
    place: Attributes = {"x": round(x, 1), "y": round(y, 1)}
    if rotate:
        place = {"transform": f"translate({round(x, 1)} {round(y, 1)}) rotate({rotate})"}
    return Shape("text", {**place, "text-anchor": anchor, **css}, text)


def axis_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten) that cover low..high in about `count` steps."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _tick_text(value: float, step: float) -> str:
    if value and (abs(value) >= 1e6 or step < 1e-4):
        return f"{value:.3g}".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{decimals}f}".replace("-", "−")


class ChartAxes:
    """Axes of a drawing: maps data to SVG coordinates and draws ticks, labels and reference lines."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], size: ChartSize) -> None:
        self.size, self.left, self.right, self.bottom = size, size.left, size.right, size.bottom
        self.y_ticks = axis_ticks(min(ys), max(ys))
        self.x_low, self.x_high = min(xs), max(xs)
        if self.x_high == self.x_low:
            self.x_low, self.x_high = self.x_low - 0.5, self.x_high + 0.5

    def x(self, value: float) -> float:
        """Return the horizontal SVG coordinate of a value."""
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(self.left + share * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        """Return the vertical SVG coordinate of a value."""
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return round(self.bottom - share * (self.bottom - TOP), 2)

    def y_axis(self) -> list[Shape]:
        """Draw the vertical axis with its grid lines; zero is a stronger line."""
        parts = []
        for value in self.y_ticks:
            y, text = self.y(value), _tick_text(value, self.y_ticks[1] - self.y_ticks[0])
            kind = "axis" if value == self.y_ticks[0] or abs(value) < 1e-12 else "rule"
            parts.append(line(self.left, y, self.right, y, kind))
            parts.append(label(self.left - 8, y + 4, text, anchor="end"))
        return parts

    def x_axis(self, x_label: str) -> list[Shape]:
        """Draw the ticks and the label of the horizontal axis."""
        marks = axis_ticks(self.x_low, self.x_high, self.size.width // self.size.tick_distance)
        step = marks[1] - marks[0]
        parts = [
            label(self.x(value), self.bottom + 19, _tick_text(value, step), anchor="middle")
            for value in marks
            if self.x_low - step * 1e-6 <= value <= self.x_high + step * 1e-6
        ]
        return [*parts, label(self.right, self.size.height - 7, x_label, anchor="end")]

    def horizontal_line(self, value: float, text: str) -> list[Shape]:
        """Draw a dashed line at a y value, with its label at the right end."""
        y = self.y(value)
        below = y < TOP + 16  # no room above the line
        position = y + 14 if below else y - 5
        return [
            line(self.left, y, self.right, y, "level"),
            label(self.right - 4, position, text, anchor="end", css_class="note"),
        ]

    def vertical_line(self, value: float, text: str, css_class: str = "mark") -> list[Shape]:
        """Draw a dashed line at an x value, with its label at the top."""
        x = self.x(value)
        on_right = x > (self.left + self.right) / 2
        anchor, shift = ("end", -5) if on_right else ("start", 5)
        return [
            line(x, TOP, x, self.bottom, css_class),
            label(x + shift, TOP + 10, text, anchor=anchor, css_class="note"),
        ]


def points_attribute(coordinates: Iterable[tuple[float, float]]) -> str:
    """Return the points of a polyline or polygon as SVG has them."""
    return " ".join(f"{x},{y}" for x, y in coordinates)
