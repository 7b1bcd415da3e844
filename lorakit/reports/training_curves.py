"""Charts of a run's metrics.jsonl: the loss and all other metrics over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lorakit.reports.charts import line_chart
from lorakit.reports.drawing import Chart
from lorakit.reports.rendering import Block

EXTRA_CURVES = 8
MIN_POINTS_TO_SMOOTH = 50


@dataclass(frozen=True)
class TrainingCurves(Block):
    """The charts that are shown, and those that a click opens."""

    macro: ClassVar[str] = "training_curves"
    main: Sequence[Chart]
    more: Sequence[Chart] = ()


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> TrainingCurves:
    """Return charts of the loss with its running mean, of the samples' CLIP-T, and hidden ones of the rest.

    `metrics` are rows of metrics.jsonl, each with "step" and numbers.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        for key, value in row.items():
            if key != "step" and _number(value) and _number(row.get("step")):
                curves.setdefault(key, []).append((float(row["step"]), float(value)))
    loss = {key: points for key, points in curves.items() if "loss" in key}
    loss_curves = dict(loss)
    if len(loss.get("loss", [])) >= MIN_POINTS_TO_SMOOTH:
        loss_curves["loss, running mean"] = _running_mean(loss["loss"])
    scores = [key for key in curves if key.startswith("clip_t")]
    rates = {key: points for key, points in curves.items() if key == "lr" or key.startswith("lr_")}
    listed = {*loss, *scores, *rates}
    rest = [key for key in curves if key not in listed][:EXTRA_CURVES]
    more = [line_chart({key: curves[key]}, x_label="step", y_label=key, half_width=True) for key in rest]
    if rates:
        more.append(line_chart(rates, x_label="step", y_label="learning rate", half_width=True))
    main = [
        line_chart(loss_curves, x_label="step", y_label="loss"),
        *(line_chart({key: curves[key]}, x_label="step", y_label="CLIP-T of samples") for key in scores),
    ]
    return TrainingCurves(main, more)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the mean over the last twentieth of the run at each of at most 100 steps."""
    window, stride = max(2, len(points) // 20), max(1, len(points) // 100)
    ends = range(window, len(points) + 1, stride)
    return [(points[end - 1][0], sum(y for _, y in points[end - window : end]) / window) for end in ends]
