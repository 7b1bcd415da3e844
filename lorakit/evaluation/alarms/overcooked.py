"""The alarm about over-cooked images: colors, contrast and detail that neither the base nor the data have.

A style may be loud and a subject colorful, so that an image is compared with both: the base model's images of
the same prompts and the training images. Only what lies beyond both is the work of too much training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorakit.core.statistics import Interval, mean_interval, student_quantile
from lorakit.data.prompts import Prompt
from lorakit.evaluation.alarms.alarm import (
    FAMILY_ERROR,
    Alarm,
    FloatArray,
    Level,
    family_level,
    worst_examples,
)
from lorakit.evaluation.metrics.image_statistics import STATISTICS, StatisticName
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

MAX_EXCESS, SURE_EXCESS = 1.0, 1.5
"""Distance beyond the base model's and the training images' means, in standard deviations of single images: a
warning above the first, an alarm if the interval is above the second."""
MIN_IMAGES = 3
_MIN_SPREAD: dict[StatisticName, float] = {"saturation": 0.03, "contrast": 0.1, "detail": 0.15}
"""Standard deviations below which a set of images counts as uniform, so that any change would be large."""
_WORDS: dict[tuple[StatisticName, int], str] = {
    ("saturation", 1): "more saturated",
    ("contrast", 1): "higher in contrast",
    ("detail", 1): "grainier or more sharpened",
    ("saturation", -1): "paler",
    ("contrast", -1): "lower in contrast",
    ("detail", -1): "blurrier",
}


@dataclass(frozen=True)
class _Comparison:
    """Distances (G,) of each prompt's images from the mean of others, in standard deviations of an image."""

    distances: FloatArray
    error: float = 0.0
    """Standard error of the mean of the others."""
    margin: float = 0.0
    """Half the width of its interval."""


@dataclass(frozen=True)
class _Excess:
    """The distance of one statistic beyond the nearer of its two comparisons."""

    statistic: int
    sign: int
    interval: Interval
    level: Level


def overcooked(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Images are more saturated, contrasted or grainy than the base model's and the training images."""
    excesses = list(_excesses(evaluation, variant))
    if not excesses:
        return None
    alarms = [excess for excess in excesses if excess.level == "alarm"] or excesses
    worst = max(alarms, key=lambda excess: excess.interval.mean)
    words = " and ".join(_WORDS[STATISTICS[excess.statistic], excess.sign] for excess in alarms)
    others = "the base model's" + (" and the training images" if evaluation.reference_statistics else "")
    message = f"images are {words} than {others}, by {worst.interval.mean:.1f} standard deviations"
    scores = {key: worst.sign * values[worst.statistic] for key, values in variant.image_statistics.items()}
    examples = worst_examples(scores, _prompts(evaluation))
    limit = SURE_EXCESS if worst.level == "alarm" else MAX_EXCESS
    return Alarm("overcooked", message, worst.interval, limit, examples, worst.level)


def _prompts(evaluation: Evaluation) -> list[Prompt]:
    return evaluation.prompts_of_role("subject") or evaluation.prompts


def _excesses(evaluation: Evaluation, variant: VariantScores) -> Iterator[_Excess]:
    """Yield the statistics of a variant that lie beyond those of all images it is compared with."""
    prompts, base = _prompts(evaluation), evaluation.base
    own = _prompt_means(variant, prompts)
    before = _prompt_means(base, prompts) if base else np.full_like(own, np.nan)
    references = np.array(evaluation.reference_statistics).reshape(-1, len(STATISTICS))
    known = np.isfinite(own).all(1) & (np.isfinite(before).all(1) | (base is None))
    if not known.any() or (base is None and len(references) < MIN_IMAGES):
        return
    for index, name in enumerate(STATISTICS):
        spread = _spread(name, [_values(base, prompts, index), references[:, index]])
        comparisons = []
        if base:
            comparisons.append(_Comparison((own - before)[known, index] / spread))
        if len(references) >= MIN_IMAGES:
            column = references[:, index]
            error = float(column.std(ddof=1)) / spread / math.sqrt(len(column))
            margin = student_quantile(1 - FAMILY_ERROR / 2, len(column) - 1) * error
            distances = (own[known, index] - column.mean()) / spread
            comparisons.append(_Comparison(distances, error, margin))
        for sign in (1, -1):
            signed = [replace(one, distances=sign * one.distances) for one in comparisons]
            if excess := _excess(signed, family_level(evaluation)):
                yield _Excess(index, sign, *excess)


def _excess(comparisons: Sequence[_Comparison], level: float) -> tuple[Interval, Level] | None:
    """Return the smallest of the mean distances, with its grade, if it is above `MAX_EXCESS`.

    Beyond doubt needs two comparisons: a style may differ from the base model's images, and a base model from
    the style's.
    """
    nearest = min(comparisons, key=lambda one: float(one.distances.mean()))
    if not min(one.distances.mean() - one.error for one in comparisons) > MAX_EXCESS:
        return None
    lower = []
    for one in comparisons:
        interval = mean_interval(one.distances, level=level)
        lower.append(interval.mean - math.hypot(interval.mean - interval.ci_low, one.margin))
    is_sure = len(comparisons) == 2 and min(lower) > SURE_EXCESS
    return mean_interval(nearest.distances), "alarm" if is_sure else "warning"


def _prompt_means(variant: VariantScores, prompts: Sequence[Prompt]) -> FloatArray:
    """Return the statistics (G, 3) of each prompt's images, means over its seeds."""
    rows = []
    for prompt in prompts:
        keys = [SampleKey(prompt.id, seed) for seed in prompt.seeds]
        known = [variant.image_statistics[key] for key in keys if key in variant.image_statistics]
        rows.append(np.mean(known, axis=0) if known else np.full(len(STATISTICS), np.nan))
    return np.array(rows)


def _values(variant: VariantScores | None, prompts: Sequence[Prompt], index: int) -> FloatArray:
    ids = {prompt.id for prompt in prompts}
    items = variant.image_statistics.items() if variant else ()
    return np.array([values[index] for key, values in items if key.prompt_id in ids])


def _spread(name: StatisticName, groups: Sequence[FloatArray]) -> float:
    """Return the standard deviation of single images, as a mean over the groups that have enough of them."""
    variances = [float(group.var(ddof=1)) for group in groups if len(group) >= MIN_IMAGES]
    return max(_MIN_SPREAD[name], math.sqrt(float(np.mean(variances)))) if variances else _MIN_SPREAD[name]
