"""Charts as inline SVG: axes with round ticks, legend, hover titles; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lorakit.reports.html import Html, join, paragraph, tag

WIDTH, HALF, HEIGHT = 1000, 520, 300  # SVG user units; the drawing scales to the page, or to half of it
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, HEIGHT - 46  # margins of the plane inside its axes
COLOR_COUNT = 6  # --c1 ... --c6 in style.css, then again from the first
MAX_POINTS = 400  # drawn points of a curve; a longer one keeps the extremes of each piece
MAX_TOOLTIPS = 100  # points of a curve that show their value

Points = Sequence[tuple[float, float]]
Band = Sequence[tuple[float, float, float]]


def axis_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover low..high in about `count` steps."""
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
    """Maps data to the drawing and draws the axes."""

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
        return round(LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - LEFT), 2)

    def y(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return round(self.bottom - share * (self.bottom - TOP), 2)

    def axes(self, y_label: str) -> list[Html]:
        parts = []
        for value in self.y_ticks:
            y, label = self.y(value), _tick_text(value, self.y_ticks[1] - self.y_ticks[0])
            kind = "axis" if value == self.y_ticks[0] else "rule"
            parts.append(tag("line", class_=kind, x1=LEFT, x2=self.right, y1=y, y2=y))
            parts.append(tag("text", label, x=LEFT - 8, y=y + 4, text_anchor="end"))
        turned = f"translate(13 {(TOP + self.bottom) / 2}) rotate(-90)"
        return [*parts, tag("text", y_label, transform=turned, text_anchor="middle")]

    def x_axis(self, x_label: str) -> list[Html]:
        marks = axis_ticks(self.x_low, self.x_high, self.width // (125 if self.width > HALF else 85))
        step = marks[1] - marks[0]
        parts = [
            tag("text", _tick_text(value, step), x=self.x(value), y=self.bottom + 18, text_anchor="middle")
            for value in marks
            if self.x_low - step * 1e-6 <= value <= self.x_high + step * 1e-6
        ]
        middle = (LEFT + self.right) / 2
        return [*parts, tag("text", x_label, x=middle, y=self.height - 6, text_anchor="middle")]

    def level(self, value: float, label: str) -> list[Html]:
        """A dashed line across at a height, named at its right end."""
        y = self.y(value)
        name = tag("text", label, class_="note", x=self.right - 4, y=y - 5, text_anchor="end")
        return [tag("line", class_="level", x1=LEFT, x2=self.right, y1=y, y2=y), name]

    def mark(self, value: float, label: str, kind: str = "mark") -> list[Html]:
        """A dashed line upwards at a place of the x axis, named at its top; `kind` is its class."""
        x = self.x(value)
        late = x > (LEFT + self.right) / 2
        place = {"x": x - 5 if late else x + 5, "y": TOP + 10, "text_anchor": "end" if late else "start"}
        return [
            tag("line", class_=kind, x1=x, x2=x, y1=TOP, y2=self.bottom),
            tag("text", label, class_="note", **place),
        ]

    def svg(self, parts: Iterable[Html], description: str) -> Html:
        """The drawing."""
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
    """A long curve by its ends and the lowest and highest point of each piece, so that spikes stay."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        piece = points[start : start + size]
        kept |= {min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])}
    return sorted(kept)


def _curve(plane: ChartAxes, name: str, points: list[tuple[float, ...]], colour: int) -> list[Html]:
    drawn = _downsample(points)
    places = [(plane.x(x), plane.y(y)) for x, y in drawn]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [tag("polyline", class_="curve", style=f"stroke:var(--c{colour})", points=path)]
    if len(drawn) <= 30:
        parts += [tag("circle", cx=x, cy=y, r=3, style=f"fill:var(--c{colour})") for x, y in places]
    every = max(1, math.ceil(len(drawn) / MAX_TOOLTIPS))
    for (x, y), (cx, cy) in list(zip(drawn, places, strict=True))[::every]:
        title = tag("title", f"{name}: {y:.5g} at {x:g}")
        parts.append(
            tag("circle", title, class_="target", cx=cx, cy=cy, r=8, style=f"color:var(--c{colour})")
        )
    return parts


def _band_polygon(plane: ChartAxes, band: list[tuple[float, ...]], colour: int) -> Html:
    upper = [(plane.x(x), plane.y(high)) for x, _, high in band]
    lower = [(plane.x(x), plane.y(low)) for x, low, _ in reversed(band)]
    path = " ".join(f"{x},{y}" for x, y in upper + lower)
    return tag("polygon", style=f"fill:var(--c{colour});opacity:.16", points=path)


def line_chart(
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    bands: Mapping[str, Band] | None = None,
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    half: bool = False,
) -> Html:
    """Curves of (x, y) points; `bands` are (x, low, high) areas behind the curve of the same name.

    `levels` and `marks` are named dashed lines across at some y, and up at some x; `half` suits half a page.
    Values that are not finite are left out, and a chart without any point says so.
    """
    curves = {name: _finite(points) for name, points in series.items()}
    areas = {name: _finite(band) for name, band in (bands or {}).items()}
    across = {name: y for name, y in (levels or {}).items() if math.isfinite(y)}
    everything = [*curves.values(), *areas.values()]
    xs = [point[0] for points in everything for point in points]
    if not xs:
        return tag("figure", paragraph(f"{y_label}: no points to draw."))
    ys = [y for points in everything for point in points for y in point[1:]]
    plane = ChartAxes([*xs, *(marks or {}).values()], [*ys, *across.values()], HALF if half else WIDTH)
    colours = {name: i % COLOR_COUNT + 1 for i, name in enumerate(dict.fromkeys([*curves, *areas]))}
    parts = plane.axes(y_label) + plane.x_axis(x_label)
    for name, y in across.items():
        parts += plane.level(y, name)
    for name, x in (marks or {}).items():
        parts += plane.mark(x, name)
    parts += [_band_polygon(plane, band, colours[name]) for name, band in areas.items() if band]
    for name, points in curves.items():
        parts += _curve(plane, name, points, colours[name]) if points else []
    legend = [tag("li", tag("i", style=f"background:var(--c{c})"), name) for name, c in colours.items()]
    listed = [tag("ul", *legend, class_="legend")] if len(colours) > 1 else []
    return tag("figure", *listed, plane.svg(parts, f"{y_label} over {x_label}"))


def bar_chart(labels: Sequence[str], values: Sequence[float], *, y_label: str) -> Html:
    """One bar a label, from zero up or down; its value on hover, and above it when there is room."""
    pairs = [(label, float(v)) for label, v in zip(labels, values, strict=True) if math.isfinite(v)]
    if not pairs:
        return tag("figure", paragraph(f"{y_label}: no values to draw."))
    plane = ChartAxes([0.0, float(len(pairs))], [0.0, *(value for _, value in pairs)])
    pitch = (plane.right - LEFT) / len(pairs)
    every = math.ceil(26 / pitch)  # turned labels closer than 26 units overlap
    turned = any(len(label) * 7 > pitch for label, _ in pairs)  # a letter is about 7 units wide
    parts = plane.axes(y_label)
    for i, (label, value) in enumerate(pairs):
        middle = plane.x(i + 0.5)
        parts.append(_bar(plane, label, value, middle, min(pitch * 0.72, 80)))
        if pitch > 36:
            parts.append(
                tag("text", f"{value:g}", x=middle, y=plane.y(max(value, 0)) - 4, text_anchor="middle")
            )
        if i % every == 0:
            parts.append(_bar_label(label, middle, turned))
    return tag("figure", plane.svg(parts, y_label))


def _bar(plane: ChartAxes, label: str, value: float, middle: float, width: float) -> Html:
    top, foot = plane.y(max(value, 0.0)), plane.y(min(value, 0.0))
    title = tag("title", f"{label}: {value:g}")
    left, height = round(middle - width / 2, 2), round(max(foot - top, 0.75), 2)
    place = {"x": left, "y": top, "width": round(width, 2), "height": height, "rx": 2}
    return tag("rect", title, class_="bar", style="fill:var(--c1)", **place)


def _bar_label(label: str, x: float, turned: bool) -> Html:
    if not turned:
        return tag("text", label, x=x, y=BOTTOM + 18, text_anchor="middle")
    short = label if len(label) <= 14 else label[:13] + "…"
    return tag("text", short, transform=f"translate({x} {BOTTOM + 14}) rotate(-28)", text_anchor="end")
