"""Numbers and lists of names as text for reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorakit.core.statistics import Interval
from lorakit.evaluation.metric_table import Metric

NO_VALUE = "–"
_MINUS = "−"


def format_score(value: float, metric: Metric, *, signed: bool = False) -> str:
    """Format a score in the unit of its metric, with a real minus sign; a dash for NaN."""
    if math.isnan(value):
        return NO_VALUE
    rounded = round(metric.scale * value, metric.digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    text = f"{rounded:{'+' if signed and rounded else ''}.{metric.digits}f}".replace("-", _MINUS)
    return f"{text} %" if metric.description.startswith("%") else text


def format_interval(interval: Interval | None, metric: Metric, *, signed: bool = False) -> str:
    """Format a mean and its interval: 12.3 [11.0, 13.9]."""
    if interval is None:
        return NO_VALUE
    if not interval.is_known:
        return _unknown_text(interval)
    mean = format_score(interval.mean, metric, signed=signed)
    if math.isnan(interval.ci_low):
        return mean
    low, high = (
        format_score(value, metric, signed=signed).removesuffix(" %")
        for value in (interval.ci_low, interval.ci_high)
    )
    return f"{mean} [{low}, {high}]"


def format_percent_interval(interval: Interval | None) -> str:
    """Format a share and its interval in percent: 71 % [60, 83]; of an unknown one the reason."""
    if interval is not None and not interval.is_known:
        return _unknown_text(interval)
    if interval is None or math.isnan(interval.mean):
        return NO_VALUE
    if math.isnan(interval.ci_low):
        return format_percent(interval.mean)
    bounds = f"[{100 * interval.ci_low:.0f}, {100 * interval.ci_high:.0f}]".replace("-", _MINUS)
    return f"{format_percent(interval.mean)} {bounds}"


def _unknown_text(interval: Interval) -> str:
    return f"cannot be determined ({interval.unknown_reason})"


def format_percent(value: float) -> str:
    """Format a share in percent: 71 %."""
    return f"{100 * value + 0.0:.0f} %".replace("-", _MINUS)


def format_count(number: int, name: str) -> str:
    """Format a number of things: 1 prompt, 2 prompts."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def format_name_range(names: Sequence[str]) -> str:
    """Join ordered names: a and b, or a to f if there are more than three."""
    return f"{names[0]} to {names[-1]}" if len(names) > 3 else join_names(names)


def join_names(names: Sequence[str], max_names: int = 6) -> str:
    """Join names: a, b and c; after `max_names` only the number of the others follows."""
    first_names = list(names[:max_names])
    if len(names) > max_names:
        return ", ".join(first_names) + f" and {len(names) - max_names} more"
    if len(first_names) < 2:
        return "".join(first_names)
    return " and ".join([", ".join(first_names[:-1]), first_names[-1]])
