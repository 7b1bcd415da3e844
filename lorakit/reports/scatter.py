"""A scatter chart of points with an interval in each direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorakit.reports.charts import LEFT, TOP, WIDTH, ChartAxes
from lorakit.reports.html import Html, paragraph, tag

SCATTER_HEIGHT = 440
_EDGE = 0.06  # free space around the points, as a share of the range


@dataclass(frozen=True)
class ScatterPoint:
    """A point with its intervals as (value, low, high); NaN for an end that is not known.

    `good` True highlights it as selected, False draws it as rejected; `note` is its tooltip.
    """

    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    good: bool | None = None
    note: str = ""


def scatter_chart(
    points: Sequence[ScatterPoint],
    *,
    x_label: str,
    y_label: str,
    horizontal_lines: Mapping[str, float] | None = None,
    vertical_lines: Mapping[str, float] | None = None,
    connected_labels: Sequence[str] = (),
) -> Html:
    """Draw the points as crosses of their intervals.

    `horizontal_lines` and `vertical_lines` are dashed lines at y and x values by label. A faint line connects
    the points of `connected_labels` in their order.
    """
    horizontal_lines, vertical_lines = horizontal_lines or {}, vertical_lines or {}
    finite_points = [point for point in points if math.isfinite(point.x[0]) and math.isfinite(point.y[0])]
    if not finite_points:
        return tag("figure", paragraph(f"{y_label}: no data."))
    xs = [value for point in finite_points for value in point.x if math.isfinite(value)]
    ys = [value for point in finite_points for value in point.y if math.isfinite(value)]
    xs += vertical_lines.values()
    ys += horizontal_lines.values()
    edge = (max(xs) - min(xs) or 1.0) * _EDGE
    axes = ChartAxes([min(xs) - edge, max(xs) + edge], ys, WIDTH, SCATTER_HEIGHT)
    parts = axes.y_axis(y_label) + axes.x_axis(x_label)
    for name, value in horizontal_lines.items():
        parts += axes.horizontal_line(value, name)
    for name, value in vertical_lines.items():
        parts += axes.vertical_line(value, name, "level")
    coordinates = {point.label: f"{axes.x(point.x[0])},{axes.y(point.y[0])}" for point in finite_points}
    connected = " ".join(coordinates[label] for label in connected_labels if label in coordinates)
    parts.append(tag("polyline", class_="path", points=connected))
    for point in sorted(finite_points, key=lambda point: point.good is True):  # the selected one on top
        parts += _cross(axes, point)
    parts += _labels(axes, finite_points)
    return tag("figure", axes.svg(parts, f"{y_label} against {x_label}"))


def _cross(axes: ChartAxes, point: ScatterPoint) -> list[Html]:
    x, y = axes.x(point.x[0]), axes.y(point.y[0])
    css_class = {True: "cross selected", False: "cross rejected", None: "cross"}[point.good]
    parts = []
    if math.isfinite(point.x[1]):
        parts.append(tag("line", x1=axes.x(point.x[1]), x2=axes.x(point.x[2]), y1=y, y2=y))
    if math.isfinite(point.y[1]):
        parts.append(tag("line", x1=x, x2=x, y1=axes.y(point.y[1]), y2=axes.y(point.y[2])))
    title = tag("title", point.note or point.label)
    parts.append(tag("circle", title, cx=x, cy=y, r=7 if point.good else 5))
    return [tag("g", *parts, class_=css_class)]


def _labels(axes: ChartAxes, points: Sequence[ScatterPoint]) -> list[Html]:
    """Place each point's label beside it where nothing else is; leave it out if there is no free place."""
    occupied = [(axes.x(p.x[0]) - 8, axes.x(p.x[0]) + 8, axes.y(p.y[0]) + 4) for p in points]
    parts = []
    for point in sorted(points, key=lambda point: point.good is not True):
        x, y = axes.x(point.x[0]), axes.y(point.y[0])
        width = 6.6 * len(point.label)
        places = [(x + 10, y - 9), (x - 10 - width, y - 9), (x + 10, y + 18), (x - 10 - width, y + 18)]
        places += [(x + 14, y + 4), (x - 14 - width, y + 4), (x - width / 2, y - 16), (x - width / 2, y + 26)]
        for left, foot in places:
            right = left + width
            free = all(left > b or right < a or abs(foot - f) > 13 for a, b, f in occupied)
            if free and TOP < foot < axes.bottom and left > LEFT and right < axes.right:
                occupied.append((left, right, foot))
                css_class = "name selected" if point.good else "name"
                parts.append(tag("text", point.label, class_=css_class, x=round(left, 1), y=round(foot, 1)))
                break
    return parts
