"""Numbers as reports show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorakit.core.statistics import Interval
from lorakit.evaluation.score_table import Metric

NONE = "–"


def number(value: float, metric: Metric, *, signed: bool = False) -> str:
    """A score in its unit, with a real minus sign; a dash where there is none."""
    if math.isnan(value):
        return NONE
    rounded = round(metric.scale * value, metric.digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    text = f"{rounded:{'+' if signed and rounded else ''}.{metric.digits}f}".replace("-", "−")
    return f"{text} %" if metric.note.startswith("%") else text


def spread(interval: Interval | None, metric: Metric, *, signed: bool = False) -> str:
    """Mean and interval: 12.3 [11.0, 13.9]."""
    if interval is None:
        return NONE
    mean = number(interval.mean, metric, signed=signed)
    if math.isnan(interval.low):
        return mean
    low, high = (number(v, metric, signed=signed).removesuffix(" %") for v in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def share(interval: Interval | None) -> str:
    """A share in percent: 71 % [60, 83]."""
    if interval is None or math.isnan(interval.mean):
        return NONE
    if math.isnan(interval.low):
        return percent(interval.mean)
    return f"{percent(interval.mean)} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]".replace("-", "−")


def percent(value: float) -> str:
    """71 %."""
    return f"{100 * value + 0.0:.0f} %".replace("-", "−")


def count(number: int, name: str) -> str:
    """1 prompt, 2 prompts."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def span(names: Sequence[str]) -> str:
    """Names in order: a and b, or a to f where they are many."""
    return f"{names[0]} to {names[-1]}" if len(names) > 3 else listed(names)


def listed(names: Sequence[str], most: int = 6) -> str:
    """a, b and c; many are cut."""
    shown = list(names[:most])
    if len(names) > most:
        return ", ".join(shown) + f" and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
