"""Charts as inline SVG with axes, legend and tooltips; the colours are in the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lorakit.reports.html import Html, join, paragraph, tag

WIDTH, HALF, HEIGHT = 1000, 520, 300  # SVG user units; the chart scales to the page, or to half of it
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, HEIGHT - 46  # edges of the plot area
COLOR_COUNT = 6  # --c1 ... --c6 in style.css, then again from the first
MAX_POINTS = 400  # of a curve; a longer one keeps the extremes of each piece
MAX_DOTS = 30  # a curve of at most so many points shows them
MAX_TOOLTIPS = 100  # of a curve

Points = Sequence[tuple[float, float]]
Band = Sequence[tuple[float, float, float]]


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
    """Axes of a chart: maps data to SVG coordinates and draws ticks, labels and reference lines."""

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], width: int = WIDTH, height: int = HEIGHT
    ) -> None:
        self.width, self.height = width, height
        self.right, self.bottom = width - RIGHT, height - (HEIGHT - BOTTOM)
        self.y_ticks = axis_ticks(min(ys), max(ys))
        self.x_low, self.x_high = min(xs), max(xs)
        if self.x_high == self.x_low:
            self.x_low, self.x_high = self.x_low - 0.5, self.x_high + 0.5

    def x(self, value: float) -> float:
        """Return the horizontal SVG coordinate of a value."""
        return round(LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - LEFT), 2)

    def y(self, value: float) -> float:
        """Return the vertical SVG coordinate of a value."""
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return round(self.bottom - share * (self.bottom - TOP), 2)

    def y_axis(self, y_label: str) -> list[Html]:
        """Draw the vertical axis with its grid lines."""
        parts = []
        for value in self.y_ticks:
            y, label = self.y(value), _tick_text(value, self.y_ticks[1] - self.y_ticks[0])
            kind = "axis" if value == self.y_ticks[0] else "rule"
            parts.append(tag("line", class_=kind, x1=LEFT, x2=self.right, y1=y, y2=y))
            parts.append(tag("text", label, x=LEFT - 8, y=y + 4, text_anchor="end"))
        rotation = f"translate(13 {(TOP + self.bottom) / 2}) rotate(-90)"
        return [*parts, tag("text", y_label, transform=rotation, text_anchor="middle")]

    def x_axis(self, x_label: str) -> list[Html]:
        """Draw the ticks and the label of the horizontal axis."""
        marks = axis_ticks(self.x_low, self.x_high, self.width // (125 if self.width > HALF else 85))
        step = marks[1] - marks[0]
        parts = [
            tag("text", _tick_text(value, step), x=self.x(value), y=self.bottom + 18, text_anchor="middle")
            for value in marks
            if self.x_low - step * 1e-6 <= value <= self.x_high + step * 1e-6
        ]
        middle = (LEFT + self.right) / 2
        return [*parts, tag("text", x_label, x=middle, y=self.height - 6, text_anchor="middle")]

    def horizontal_line(self, value: float, label: str) -> list[Html]:
        """Draw a dashed line at a y value, with its label at the right end."""
        y = self.y(value)
        text = tag("text", label, class_="note", x=self.right - 4, y=y - 5, text_anchor="end")
        return [tag("line", class_="level", x1=LEFT, x2=self.right, y1=y, y2=y), text]

    def vertical_line(self, value: float, label: str, css_class: str = "mark") -> list[Html]:
        """Draw a dashed line at an x value, with its label at the top."""
        x = self.x(value)
        on_right = x > (LEFT + self.right) / 2
        anchor = "end" if on_right else "start"
        position = {"x": x - 5 if on_right else x + 5, "y": TOP + 10, "text_anchor": anchor}
        return [
            tag("line", class_=css_class, x1=x, x2=x, y1=TOP, y2=self.bottom),
            tag("text", label, class_="note", **position),
        ]

    def svg(self, parts: Iterable[Html], description: str) -> Html:
        """Return the chart of the parts; `description` is its text for screen readers."""
        return tag(
            "svg",
            join(parts, "\n"),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            aria_label=description,
        )


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


def _curve(axes: ChartAxes, name: str, points: list[tuple[float, ...]], colour: int) -> list[Html]:
    downsampled = _downsample(points)
    coordinates = [(axes.x(x), axes.y(y)) for x, y in downsampled]
    path = " ".join(f"{x},{y}" for x, y in coordinates)
    parts = [tag("polyline", class_="curve", style=f"stroke:var(--c{colour})", points=path)]
    if len(downsampled) <= MAX_DOTS:
        parts += [tag("circle", cx=x, cy=y, r=3, style=f"fill:var(--c{colour})") for x, y in coordinates]
    stride = max(1, math.ceil(len(downsampled) / MAX_TOOLTIPS))
    for (x, y), (cx, cy) in list(zip(downsampled, coordinates, strict=True))[::stride]:
        title = tag("title", f"{name}: {y:.5g} at {x:g}")
        parts.append(
            tag("circle", title, class_="target", cx=cx, cy=cy, r=8, style=f"color:var(--c{colour})")
        )
    return parts


def _band_polygon(axes: ChartAxes, band: list[tuple[float, ...]], colour: int) -> Html:
    upper = [(axes.x(x), axes.y(high)) for x, _, high in band]
    lower = [(axes.x(x), axes.y(low)) for x, low, _ in reversed(band)]
    path = " ".join(f"{x},{y}" for x, y in upper + lower)
    return tag("polygon", style=f"fill:var(--c{colour});opacity:.16", points=path)


def line_chart(
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    bands: Mapping[str, Band] | None = None,
    horizontal_lines: Mapping[str, float] | None = None,
    vertical_lines: Mapping[str, float] | None = None,
    half_width: bool = False,
) -> Html:
    """Draw curves of (x, y) points; `bands` are (x, low, high) areas behind the curve of the same name.

    The lines are dashed, by label: `horizontal_lines` at a y value, `vertical_lines` at an x value. With
    `half_width` the chart fits half a page. Values that are not finite are left out, and a chart without any
    point becomes a sentence.
    """
    curves = {name: _finite(points) for name, points in series.items()}
    areas = {name: _finite(band) for name, band in (bands or {}).items()}
    heights = {name: y for name, y in (horizontal_lines or {}).items() if math.isfinite(y)}
    everything = [*curves.values(), *areas.values()]
    xs = [point[0] for points in everything for point in points]
    if not xs:
        return tag("figure", paragraph(f"{y_label}: no data."))
    ys = [y for points in everything for point in points for y in point[1:]]
    vertical_lines = vertical_lines or {}
    width = HALF if half_width else WIDTH
    axes = ChartAxes([*xs, *vertical_lines.values()], [*ys, *heights.values()], width)
    colours = {name: i % COLOR_COUNT + 1 for i, name in enumerate(dict.fromkeys([*curves, *areas]))}
    parts = axes.y_axis(y_label) + axes.x_axis(x_label)
    for name, y in heights.items():
        parts += axes.horizontal_line(y, name)
    for name, x in vertical_lines.items():
        parts += axes.vertical_line(x, name)
    parts += [_band_polygon(axes, band, colours[name]) for name, band in areas.items() if band]
    for name, points in curves.items():
        parts += _curve(axes, name, points, colours[name]) if points else []
    items = [tag("li", tag("i", style=f"background:var(--c{c})"), name) for name, c in colours.items()]
    legend = [tag("ul", *items, class_="legend")] if len(colours) > 1 else []
    return tag("figure", *legend, axes.svg(parts, f"{y_label} over {x_label}"))


def bar_chart(labels: Sequence[str], values: Sequence[float], *, y_label: str) -> Html:
    """Draw one bar for each label, from zero; the value is a tooltip, and above the bar if there is room."""
    pairs = [(label, float(v)) for label, v in zip(labels, values, strict=True) if math.isfinite(v)]
    if not pairs:
        return tag("figure", paragraph(f"{y_label}: no data."))
    axes = ChartAxes([0.0, float(len(pairs))], [0.0, *(value for _, value in pairs)])
    pitch = (axes.right - LEFT) / len(pairs)
    stride = math.ceil(26 / pitch)  # rotated labels closer than 26 units overlap
    rotated = any(len(label) * 7 > pitch for label, _ in pairs)  # a letter is about 7 units wide
    parts = axes.y_axis(y_label)
    for i, (label, value) in enumerate(pairs):
        middle = axes.x(i + 0.5)
        parts.append(_bar(axes, label, value, middle, min(pitch * 0.72, 80)))
        if pitch > 36:
            parts.append(
                tag("text", f"{value:g}", x=middle, y=axes.y(max(value, 0)) - 4, text_anchor="middle")
            )
        if i % stride == 0:
            parts.append(_bar_label(label, middle, rotated))
    return tag("figure", axes.svg(parts, y_label))


def _bar(axes: ChartAxes, label: str, value: float, middle: float, width: float) -> Html:
    top, bottom = axes.y(max(value, 0.0)), axes.y(min(value, 0.0))
    title = tag("title", f"{label}: {value:g}")
    left, height = round(middle - width / 2, 2), round(max(bottom - top, 0.75), 2)
    position = {"x": left, "y": top, "width": round(width, 2), "height": height, "rx": 2}
    return tag("rect", title, class_="bar", style="fill:var(--c1)", **position)


def _bar_label(label: str, x: float, rotated: bool) -> Html:
    if not rotated:
        return tag("text", label, x=x, y=BOTTOM + 18, text_anchor="middle")
    short = label if len(label) <= 14 else label[:13] + "…"
    return tag("text", short, transform=f"translate({x} {BOTTOM + 14}) rotate(-28)", text_anchor="end")
