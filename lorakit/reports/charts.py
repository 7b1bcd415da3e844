"""Line charts, bar charts and histograms with axes, legend, tooltips and links."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lorakit.reports.drawing import (
    SIZES,
    TOP,
    Attributes,
    Chart,
    ChartAxes,
    ChartSize,
    Drawing,
    Shape,
    label,
    line,
    points_attribute,
)

COLOR_COUNT = 6  # --c1 ... --c6 in style.css, then again from the first
MAX_POINTS = 400  # of a curve; a longer one keeps the extremes of each piece
MAX_DOTS = 30  # a curve of at most so many points shows them
MAX_TOOLTIPS = 60  # of a curve

Points = Sequence[tuple[float, float]]
Band = Sequence[tuple[float, float, float]]
Links = Mapping[tuple[str, float], str]


def _finite(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    return sorted(point for point in points if all(map(math.isfinite, point)))


def _downsample(points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Thin a long curve to its ends and the lowest and highest point of each piece, so that spikes stay."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        piece = points[start : start + size]
        kept |= {min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])}
    return sorted(kept)


def _curve(
    axes: ChartAxes, name: str, points: list[tuple[float, ...]], color: int, links: Links
) -> list[Shape]:
    downsampled = _downsample(points)
    coordinates = [(axes.x(x), axes.y(y)) for x, y in downsampled]
    path = points_attribute(coordinates)
    parts = [Shape("polyline", {"class": "curve", "style": f"stroke:var(--c{color})", "points": path})]
    if len(downsampled) <= MAX_DOTS:
        fill = f"fill:var(--c{color})"
        parts += [Shape("circle", {"cx": x, "cy": y, "r": 3.5, "style": fill}) for x, y in coordinates]
    stride = max(1, math.ceil(len(downsampled) / MAX_TOOLTIPS))
    for (x, y), (cx, cy) in list(zip(downsampled, coordinates, strict=True))[::stride]:
        target: Attributes = {
            "class": "target",
            "cx": cx,
            "cy": cy,
            "r": 11,
            "style": f"color:var(--c{color})",
        }
        link = links.get((name, x), "")
        parts.append(Shape("circle", target, title=f"{name}: {y:.5g} at {x:g}", link=link))
    return parts


def _band_polygon(axes: ChartAxes, band: list[tuple[float, ...]], color: int) -> Shape:
    upper = [(axes.x(x), axes.y(high)) for x, _, high in band]
    lower = [(axes.x(x), axes.y(low)) for x, low, _ in reversed(band)]
    style = f"fill:var(--c{color});opacity:.16"
    return Shape("polygon", {"style": style, "points": points_attribute(upper + lower)})


def line_chart(
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    bands: Mapping[str, Band] | None = None,
    horizontal_lines: Mapping[str, float] | None = None,
    vertical_lines: Mapping[str, float] | None = None,
    half_width: bool = False,
    links: Links | None = None,
) -> Chart:
    """Draw curves of (x, y) points; `bands` are (x, low, high) areas behind the curve of the same name.

    The lines are dashed, by label: `horizontal_lines` at a y value, `vertical_lines` at an x value. With
    `half_width` the chart fits half a page. `links` are addresses by curve and x. Values that are not finite
    are left out, and a chart without any point becomes a sentence.
    """
    curves = {name: _finite(points) for name, points in series.items()}
    areas = {name: _finite(band) for name, band in (bands or {}).items()}
    heights = {name: y for name, y in (horizontal_lines or {}).items() if math.isfinite(y)}
    positions = vertical_lines or {}
    everything = [*curves.values(), *areas.values()]
    xs = [point[0] for points in everything for point in points]
    if not xs:
        return Chart(y_label)
    ys = [y for points in everything for point in points for y in point[1:]]
    colors = {name: i % COLOR_COUNT + 1 for i, name in enumerate(dict.fromkeys([*curves, *areas]))}

    def draw(size: ChartSize) -> Drawing:
        axes = ChartAxes([*xs, *positions.values()], [*ys, *heights.values()], size)
        parts = axes.y_axis() + axes.x_axis(x_label)
        parts += [_band_polygon(axes, band, colors[name]) for name, band in areas.items() if band]
        for name, points in curves.items():
            parts += _curve(axes, name, points, colors[name], links or {}) if points else []
        for name, y in heights.items():
            parts += axes.horizontal_line(y, name)
        for name, x in positions.items():
            parts += axes.vertical_line(x, name)
        return Drawing(size, parts)

    drawings = [draw(size) for size in SIZES[half_width]]
    return Chart(y_label, f"{y_label} over {x_label}", drawings, list(colors.items()), half_width)


def bar_chart(labels: Sequence[str], values: Sequence[float], *, y_label: str) -> Chart:
    """Draw one bar for each label, from zero; the value is a tooltip, and above the bar if there is room."""
    pairs = [(text, float(v)) for text, v in zip(labels, values, strict=True) if math.isfinite(v)]
    if not pairs:
        return Chart(y_label)
    return Chart(y_label, y_label, [Drawing(size, _bars(pairs, size)) for size in SIZES[False]])


def _bars(pairs: Sequence[tuple[str, float]], size: ChartSize) -> list[Shape]:
    axes = ChartAxes([0.0, float(len(pairs))], [0.0, *(value for _, value in pairs)], size)
    pitch = (axes.right - axes.left) / len(pairs)
    stride = math.ceil(26 / pitch)  # rotated labels closer than 26 units overlap
    rotated = any(len(text) * size.letter > pitch for text, _ in pairs)
    parts = axes.y_axis()
    for i, (text, value) in enumerate(pairs):
        middle = axes.x(i + 0.5)
        parts.append(_bar(axes, text, value, middle, min(pitch * 0.72, 80)))
        if pitch > 36:
            parts.append(label(middle, axes.y(max(value, 0)) - 4, f"{value:g}", anchor="middle"))
        if i % stride == 0:
            parts.append(_bar_label(text, middle, size.bottom, rotated))
    return parts


def _bar(axes: ChartAxes, text: str, value: float, middle: float, width: float) -> Shape:
    top, bottom = axes.y(max(value, 0.0)), axes.y(min(value, 0.0))
    left, height = round(middle - width / 2, 2), round(max(bottom - top, 0.75), 2)
    position = {"x": left, "y": top, "width": round(width, 2), "height": height, "rx": 2}
    return Shape("rect", {"class": "bar", "style": "fill:var(--c1)", **position}, title=f"{text}: {value:g}")


def _bar_label(text: str, x: float, bottom: float, rotated: bool) -> Shape:
    if not rotated:
        return label(x, bottom + 18, text, anchor="middle")
    short = text if len(text) <= 14 else text[:13] + "…"
    return label(x, bottom + 14, short, anchor="end", rotate=-28)


def histogram(
    values: Sequence[float],
    *,
    title: str,
    value_label: str,
    marks: Mapping[str, float],
    mark_label: str,
    ticks: Mapping[str, float],
    noun: str,
    bins: int = 48,
) -> Chart:
    """Draw the number of values in bins of equal width as bars, one of them centered at zero.

    `marks` are dashed lines by tooltip, explained by `mark_label`; `ticks` label the axis, most important
    first, and those whose labels would overlap are left out. `noun` is the name of the values in tooltips.
    """
    edges = [*values, *marks.values()]
    low, high = min([*edges, -0.35]) - 0.06, max([*edges, 0.35]) + 0.06
    bin_width = (high - low) / bins
    low -= (bin_width / 2 + low) % bin_width
    counts = [0] * (bins + 1)
    for value in values:
        counts[min(bins, int((value - low) / bin_width))] += 1
    drawings = [
        Drawing(size, _bins(counts, low, bin_width, marks, ticks, noun, size)) for size in SIZES[False]
    ]
    return Chart(title, title, drawings, [(value_label, 1), (mark_label, 2)])


def _bins(
    counts: Sequence[int],
    low: float,
    bin_width: float,
    marks: Mapping[str, float],
    ticks: Mapping[str, float],
    noun: str,
    size: ChartSize,
) -> list[Shape]:
    axes = ChartAxes([low, low + len(counts) * bin_width], [0.0, float(max(counts))], size)
    parts = axes.y_axis()
    for index, number in enumerate(counts):
        if number:
            left, right = axes.x(low + index * bin_width), axes.x(low + (index + 1) * bin_width)
            place: Attributes = {
                "x": left + 0.5,
                "y": axes.y(number),
                "width": round(right - left - 1, 2),
                "rx": 1.5,
            }
            height = round(axes.bottom - axes.y(number), 2)
            bar: Attributes = {"class": "bar", "style": "fill:var(--c1)", **place, "height": height}
            parts.append(Shape("rect", bar, title=f"{number} {noun}"))
    for text, value in marks.items():
        x = axes.x(value)
        dashes: Attributes = {"class": "bin-mark", "x1": x, "x2": x, "y1": TOP, "y2": axes.bottom}
        parts.append(Shape("line", dashes, title=text))
    occupied: list[float] = []
    for text, value in ticks.items():
        x = axes.x(value)
        if axes.left < x < axes.right and all(abs(x - other) > 6 * size.letter for other in occupied):
            occupied.append(x)
            parts.append(line(x, axes.bottom, x, axes.bottom + 5, "axis"))
            parts.append(label(x, axes.bottom + 21, text, anchor="middle"))
    return parts
