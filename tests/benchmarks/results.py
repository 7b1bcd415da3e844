"""Results of the benchmarks: a JSON with machine and versions, a table in Markdown, and a plot."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lorakit.core import storage
from lorakit.core.platform import total_memory
from lorakit.reports import charts, rendering
from lorakit.reports.drawing import Chart, ChartSize, Drawing, Shape, label

Row = Mapping[str, Any]
PACKAGES = ("lorakit", "torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")
TITLES = {
    "floor": "A step of lorakit over a bare loop's (1 is equal)",
    "start": "CPU seconds to the first step",
    "peers": "CPU milliseconds a step",
    "growth": "Peak memory in MB by number of images",
    "sampling": "CPU seconds an image",
    "evaluation": "CPU seconds",
    "gpu": "Seconds a step",
}
VALUES = {"floor": "ratio", "start": "cpu_seconds", "peers": "step_ms", "growth": "peak_mb"}
VALUES |= {"sampling": "cpu_seconds", "evaluation": "cpu_seconds", "gpu": "step_seconds"}


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, memory, devices and versions."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(total_memory() / 2**30, 1),
        "devices": devices,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*: (.*)", lines)
    return found[1] if found else platform.machine()


def write(folder: Path, results: Mapping[str, Sequence[Row]]) -> list[Path]:
    """Write benchmarks.json, benchmarks.md and a plot of each benchmark (SVG); returns the files."""
    facts = machine()
    files = [storage.write_json(folder / "benchmarks.json", {"machine": facts, "results": dict(results)})]
    files.append(storage.write_text(folder / "benchmarks.md", markdown(results, facts)))
    for name, rows in results.items():
        if drawing := plot(name, rows):
            files.append(storage.write_text(folder / f"{name}.svg", drawing))
    return files


def markdown(results: Mapping[str, Sequence[Row]], facts: Mapping[str, Any] | None = None) -> str:
    """Return the results as tables."""
    parts = []
    if facts:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        devices = ", ".join(facts["devices"]) or "no GPU"
        parts.append(
            f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads used,"
            f" {facts['memory_gib']} GiB, {devices}; {versions}.\n"
        )
    for name, rows in results.items():
        parts.append(f"## {TITLES.get(name, name)}\n\n{table(rows)}\n")
    return "\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table; the columns are the keys of all rows with plain values."""
    plain = (str, int, float, type(None))
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, plain)))
    lines = [f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
    lines += [f"| {' | '.join(_cell(row.get(key)) for key in keys)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def chart(name: str, rows: Sequence[Row]) -> Chart | None:
    """Return the plot of a benchmark: bars with a line at the goal, or curves over the number of images."""
    value = VALUES.get(name)
    drawn = [row for row in rows if value and isinstance(row.get(value), (int, float))]
    if not drawn or value is None:
        return None
    if name == "growth":
        series: dict[str, list[tuple[float, ...]]] = {}
        for row in drawn:
            series.setdefault(row["name"], []).append((float(row["images"]), float(row[value])))
        return charts.line_chart(series, x_label="images", y_label=TITLES[name])
    return Chart(TITLES[name], TITLES[name], [_bars(drawn, value)])


def _bars(rows: Sequence[Row], value: str) -> Drawing:
    """Draw a bar to the right of each name, with its value, and a line at its goal."""
    size = ChartSize("wide", 960, 28 * len(rows) + 20, 7.6, 125)
    left = 20 + max(len(row["name"]) for row in rows) * 9  # units a letter, outside of a page
    longest = max([*(row[value] for row in rows), *(row.get("goal") or 0 for row in rows)])
    scale = (size.width - left - 90) / longest
    shapes = []
    for number, row in enumerate(rows):
        top, width = 10 + 28 * number, round(max(row[value] * scale, 1), 1)
        place = {"x": left, "y": top + 4, "width": width, "height": 18, "rx": 2}
        shapes += [
            label(left - 10, top + 18, row["name"], anchor="end"),
            Shape("rect", {"class": "bar", "style": "fill:var(--c1)", **place}),
            label(size.width - 10, top + 18, f"{row[value]:.4g}", anchor="end"),
        ]
        if goal := row.get("goal") if value in ("ratio", "step_seconds") else None:
            x = round(left + goal * scale, 1)
            mark = {"x1": x, "x2": x, "y1": top + 1, "y2": top + 25}
            shapes.append(Shape("line", {**mark, "style": "stroke:var(--c2);stroke-width:2.5"}))
    return Drawing(size, shapes)


def plot(name: str, rows: Sequence[Row]) -> str | None:
    """Return the plot as an SVG file of its own, with the colors of the reports."""
    drawn = chart(name, rows)
    if drawn is None or not drawn.drawings:
        return None
    found = re.search(r"<svg.*?</svg>", str(drawn.__html__()), re.DOTALL)  # the first one is wide
    assert found is not None
    size = drawn.drawings[0]
    style = (rendering.TEMPLATES / "style.css").read_text(encoding="utf-8")
    opening = f'width="{size.width}" height="{size.height}" viewBox='
    return found[0].replace("viewBox=", opening, 1).replace(">", f"><style>{style}</style>", 1) + "\n"
