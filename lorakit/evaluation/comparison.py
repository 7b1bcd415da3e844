"""The difference of two variants in every metric, with the level that holds for all metrics together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lorakit.core.statistics import Interval, holm
from lorakit.data.prompts import Prompt
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.score_table import Evaluation, VariantScores

FAMILY_LEVEL = 0.95
"""Probability that no metric without a true difference is called better or worse."""


@dataclass(frozen=True)
class MetricDifference:
    """The second variant minus the first in one metric."""

    name: str
    interval: Interval
    is_beyond_chance: bool
    """True if chance explains no difference as large, in any of the metrics (Holm's procedure)."""

    @property
    def is_better(self) -> bool | None:
        """True or False if the second variant is better or worse beyond chance; None if it is neither."""
        direction = metric_spec(self.name).direction
        if not self.is_beyond_chance or not direction:
            return None
        return (self.interval.mean > 0) == (direction > 0)


def metric_differences(
    evaluation: Evaluation, first: VariantScores, second: VariantScores, prompts: Sequence[Prompt]
) -> list[MetricDifference]:
    """Return the paired difference of each metric that both variants have, with its own 95 % interval.

    Whether one is beyond chance is decided for all metrics that can be better or worse, at `FAMILY_LEVEL`.
    """

    def difference(name: str, level: float) -> Interval | None:
        return evaluation.paired_difference(first, second, name, prompts, level)

    def firm_interval(name: str, level: float) -> Interval:
        return difference(name, level) or intervals[name]

    intervals = {name: interval for name in evaluation.metric_names() if (interval := difference(name, 0.95))}
    family = [name for name in intervals if metric_spec(name).direction]
    verdicts = holm([partial(firm_interval, name) for name in family], FAMILY_LEVEL)
    beyond = dict(zip(family, verdicts, strict=True))
    return [
        MetricDifference(name, interval, beyond.get(name, interval.excludes_zero))
        for name, interval in intervals.items()
    ]
