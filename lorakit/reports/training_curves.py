"""Charts of a run's metrics.jsonl: the loss, and everything else that was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.reports.charts import line_chart
from lorakit.reports.html import Html, details

EXTRA_CURVES = 8
MIN_POINTS_TO_SMOOTH = 50


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Loss over steps with its running mean, and every other number of the metrics folded away.

    `metrics` are rows with "step" and numbers.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        for key, value in row.items():
            if key != "step" and _number(value) and _number(row.get("step")):
                curves.setdefault(key, []).append((float(row["step"]), float(value)))
    loss = {key: points for key, points in curves.items() if "loss" in key}
    shown = dict(loss)
    if len(shown.get("loss", [])) >= MIN_POINTS_TO_SMOOTH:
        shown["loss, running mean"] = _running_mean(shown["loss"])
    scores = [key for key in curves if key.startswith("clip_t")]
    rest = [key for key in curves if key not in loss and key not in scores][:EXTRA_CURVES]
    charts = [line_chart({key: curves[key]}, x_label="step", y_label=key) for key in rest]
    return [
        line_chart(shown, x_label="step", y_label="loss"),
        *(line_chart({key: curves[key]}, x_label="step", y_label="CLIP-T of samples") for key in scores),
        *([details("Further curves", *charts)] if charts else []),
    ]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of the last twentieth of the run at each of at most 100 steps."""
    window, stride = max(2, len(points) // 20), max(1, len(points) // 100)
    ends = range(window, len(points) + 1, stride)
    return [(points[end - 1][0], sum(y for _, y in points[end - window : end]) / window) for end in ends]
