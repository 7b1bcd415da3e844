"""A scatter of points known to within an interval each way: two qualities traded against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorakit.reports.charts import LEFT, TOP, WIDTH, ChartAxes
from lorakit.reports.html import Html, paragraph, tag

SCATTER_HEIGHT = 440
_EDGE = 0.06  # of the range, left free around the points


@dataclass(frozen=True)
class ScatterPoint:
    """A point with its intervals as (value, low, high); NaN for an end that is not known.

    `good` True stands out as the choice, False is drawn as discarded; `note` is told on hover.
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
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    path: Sequence[str] = (),
) -> Html:
    """The points with their crosses; `path` joins those labels in order by a faint line.

    `levels` and `marks` are named dashed lines at some y and some x.
    """
    drawn = [point for point in points if math.isfinite(point.x[0]) and math.isfinite(point.y[0])]
    if not drawn:
        return tag("figure", paragraph(f"{y_label}: no points to draw."))
    xs = [value for point in drawn for value in point.x if math.isfinite(value)] + [*(marks or {}).values()]
    ys = [value for point in drawn for value in point.y if math.isfinite(value)] + [*(levels or {}).values()]
    room = (max(xs) - min(xs) or 1.0) * _EDGE
    plane = ChartAxes([min(xs) - room, max(xs) + room], ys, WIDTH, SCATTER_HEIGHT)
    parts = plane.axes(y_label) + plane.x_axis(x_label)
    for name, value in (levels or {}).items():
        parts += plane.level(value, name)
    for name, value in (marks or {}).items():
        parts += plane.mark(value, name, "level")
    places = {point.label: f"{plane.x(point.x[0])},{plane.y(point.y[0])}" for point in drawn}
    way = " ".join(places[label] for label in path if label in places)
    parts.append(tag("polyline", class_="way", points=way))
    for point in sorted(drawn, key=lambda point: point.good is True):  # the choice lies on top
        parts += _cross(plane, point)
    parts += _labels(plane, drawn)
    return tag("figure", plane.svg(parts, f"{y_label} against {x_label}"))


def _cross(plane: ChartAxes, point: ScatterPoint) -> list[Html]:
    x, y = plane.x(point.x[0]), plane.y(point.y[0])
    kind = {True: "cross chosen", False: "cross discarded", None: "cross"}[point.good]
    parts = []
    if math.isfinite(point.x[1]):
        parts.append(tag("line", x1=plane.x(point.x[1]), x2=plane.x(point.x[2]), y1=y, y2=y))
    if math.isfinite(point.y[1]):
        parts.append(tag("line", x1=x, x2=x, y1=plane.y(point.y[1]), y2=plane.y(point.y[2])))
    title = tag("title", point.note or point.label)
    parts.append(tag("circle", title, cx=x, cy=y, r=7 if point.good else 5))
    return [tag("g", *parts, class_=kind)]


def _labels(plane: ChartAxes, points: Sequence[ScatterPoint]) -> list[Html]:
    """Each point's name beside it, where neither a point nor another name lies; left out without room."""
    taken = [(plane.x(p.x[0]) - 8, plane.x(p.x[0]) + 8, plane.y(p.y[0]) + 4) for p in points]
    parts = []
    for point in sorted(points, key=lambda point: point.good is not True):
        x, y = plane.x(point.x[0]), plane.y(point.y[0])
        width = 6.6 * len(point.label)
        places = [(x + 10, y - 9), (x - 10 - width, y - 9), (x + 10, y + 18), (x - 10 - width, y + 18)]
        places += [(x + 14, y + 4), (x - 14 - width, y + 4), (x - width / 2, y - 16), (x - width / 2, y + 26)]
        for left, foot in places:
            right = left + width
            free = all(left > b or right < a or abs(foot - f) > 13 for a, b, f in taken)
            if free and TOP < foot < plane.bottom and left > LEFT and right < plane.right:
                taken.append((left, right, foot))
                kind = "name chosen" if point.good else "name"
                parts.append(tag("text", point.label, class_=kind, x=round(left, 1), y=round(foot, 1)))
                break
    return parts
