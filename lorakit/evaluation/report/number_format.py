"""Numbers as reports show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorakit.core.statistics import Interval
from lorakit.evaluation.score_table import Metric

NO_VALUE = "–"


def format_score(value: float, metric: Metric, *, signed: bool = False) -> str:
    """A score in its unit, with a real minus sign; a dash where there is none."""
    if math.isnan(value):
        return NO_VALUE
    rounded = round(metric.scale * value, metric.digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    text = f"{rounded:{'+' if signed and rounded else ''}.{metric.digits}f}".replace("-", "−")
    return f"{text} %" if metric.note.startswith("%") else text


def format_interval(interval: Interval | None, metric: Metric, *, signed: bool = False) -> str:
    """Mean and interval: 12.3 [11.0, 13.9]."""
    if interval is None:
        return NO_VALUE
    mean = format_score(interval.mean, metric, signed=signed)
    if math.isnan(interval.low):
        return mean
    low, high = (
        format_score(v, metric, signed=signed).removesuffix(" %") for v in (interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}]"


def format_percent_interval(interval: Interval | None) -> str:
    """A share in percent: 71 % [60, 83]."""
    if interval is None or math.isnan(interval.mean):
        return NO_VALUE
    if math.isnan(interval.low):
        return format_percent(interval.mean)
    return f"{format_percent(interval.mean)} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]".replace(
        "-", "−"
    )


def format_percent(value: float) -> str:
    """71 %."""
    return f"{100 * value + 0.0:.0f} %".replace("-", "−")


def format_count(number: int, name: str) -> str:
    """1 prompt, 2 prompts."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def format_name_range(names: Sequence[str]) -> str:
    """Names in order: a and b, or a to f where they are many."""
    return f"{names[0]} to {names[-1]}" if len(names) > 3 else join_names(names)


def join_names(names: Sequence[str], most: int = 6) -> str:
    """a, b and c; many are cut."""
    shown = list(names[:most])
    if len(names) > most:
        return ", ".join(shown) + f" and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
