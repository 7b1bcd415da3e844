"""A scatter chart of points with an interval in each direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lorakit.reports.blocks import Level
from lorakit.reports.drawing import (
    NARROW,
    TOP,
    WIDE,
    Attributes,
    Chart,
    ChartAxes,
    ChartSize,
    Drawing,
    Shape,
    label,
    line,
)

_EDGE = 0.06  # free space around the points, as a share of the range
SCATTER_SIZES = (replace(WIDE, height=440), replace(NARROW, height=360))


@dataclass(frozen=True)
class ScatterPoint:
    """A point with its intervals as (value, low, high); NaN for an end that is not known.

    `level` good highlights it as selected, bad and warn as having an alarm; `note` is its tooltip, `link` the
    place of the page that a click leads to.
    """

    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    level: Level | None = None
    note: str = ""
    link: str = ""


def scatter_chart(
    points: Sequence[ScatterPoint],
    *,
    x_label: str,
    y_label: str,
    horizontal_lines: Mapping[str, float] | None = None,
    vertical_lines: Mapping[str, float] | None = None,
    connected_labels: Sequence[str] = (),
) -> Chart:
    """Draw the points as crosses of their intervals.

    `horizontal_lines` and `vertical_lines` are dashed lines at y and x values by label. A faint line connects
    the points of `connected_labels` in their order.
    """
    heights, positions = horizontal_lines or {}, vertical_lines or {}
    known = [point for point in points if math.isfinite(point.x[0]) and math.isfinite(point.y[0])]
    if not known:
        return Chart(y_label)
    xs = [value for point in known for value in point.x if math.isfinite(value)] + [*positions.values()]
    ys = [value for point in known for value in point.y if math.isfinite(value)] + [*heights.values()]
    edge = (max(xs) - min(xs) or 1.0) * _EDGE

    def draw(size: ChartSize) -> Drawing:
        axes = ChartAxes([min(xs) - edge, max(xs) + edge], ys, size)
        parts = axes.y_axis() + axes.x_axis(x_label)
        for name, value in heights.items():
            parts += axes.horizontal_line(value, name)
        for name, value in positions.items():
            parts += axes.vertical_line(value, name, "level")
        parts.append(_path(axes, known, connected_labels))
        for point in sorted(known, key=lambda point: point.level == "good"):  # the selected one on top
            parts += _cross(axes, point)
        return Drawing(size, parts + _labels(axes, known))

    title = f"{y_label[:1].upper()}{y_label[1:]}"
    return Chart(title, f"{y_label} against {x_label}", [draw(size) for size in SCATTER_SIZES])


def _path(axes: ChartAxes, points: Sequence[ScatterPoint], labels: Sequence[str]) -> Shape:
    coordinates = {point.label: f"{axes.x(point.x[0])},{axes.y(point.y[0])}" for point in points}
    connected = " ".join(coordinates[name] for name in labels if name in coordinates)
    return Shape("polyline", {"class": "path", "points": connected})


def _cross(axes: ChartAxes, point: ScatterPoint) -> list[Shape]:
    x, y = axes.x(point.x[0]), axes.y(point.y[0])
    css_class = f"cross {point.level or ''}".strip()
    parts = []
    if math.isfinite(point.x[1]):
        parts.append(line(axes.x(point.x[1]), y, axes.x(point.x[2]), y, css_class))
    if math.isfinite(point.y[1]):
        parts.append(line(x, axes.y(point.y[1]), x, axes.y(point.y[2]), css_class))
    circle: Attributes = {"class": css_class, "cx": x, "cy": y, "r": 7 if point.level == "good" else 5}
    return [*parts, Shape("circle", circle, title=point.note or point.label, link=point.link)]


def _labels(axes: ChartAxes, points: Sequence[ScatterPoint]) -> list[Shape]:
    """Place each point's label beside it where nothing else is; leave it out if there is no free place."""
    occupied = [(axes.x(p.x[0]) - 8, axes.x(p.x[0]) + 8, axes.y(p.y[0]) + 4) for p in points]
    parts = []
    for point in sorted(points, key=lambda point: point.level != "good"):
        x, y = axes.x(point.x[0]), axes.y(point.y[0])
        width = axes.size.letter * len(point.label)
        places = [(x + 10, y - 9), (x - 10 - width, y - 9), (x + 10, y + 18), (x - 10 - width, y + 18)]
        places += [(x + 14, y + 4), (x - 14 - width, y + 4), (x - width / 2, y - 16), (x - width / 2, y + 26)]
        for left, foot in places:
            right = left + width
            free = all(left > b or right < a or abs(foot - f) > 14 for a, b, f in occupied)
            if free and TOP < foot < axes.bottom and left > axes.left and right < axes.right:
                occupied.append((left, right, foot))
                css_class = "name good" if point.level == "good" else "name"
                parts.append(label(left, foot, point.label, css_class=css_class))
                break
    return parts
