"""Confidence intervals for scores of images from prompts and seeds; the prompt is the unit.

Images of one prompt resemble each other, so treating them as independent gives intervals that are too
narrow. Each prompt is therefore first averaged over its seeds. Means have Student's interval with a
correction for skewness; shares have one of their own (shares.py). Of other statistics whole prompts are
resampled; the levels of the percentiles are widened as by Hesterberg, "What Teachers Should Know About the
Bootstrap" (2015), so that they match Student's interval on normal data.

Measured coverage of 95 % (`python -m tests.benchmarks.evaluation_statistics`): means of 8 and 24 prompts 93
to 95 % for normal and heavy-tailed scores; for very skewed ones (log-normal, sigma 1) 90 and 92 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_PROMPTS = 24  # a result of fewer prompts is marked `few_prompts`
_CHUNK = 1 << 22  # resampled values held at once
_LARGE_FREEDOM, _ANGLES = 500, 8001
_MAX_SKEWNESS = 1.5  # of few values; outliers of symmetric data look skewed

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Means (..., K) -> numbers (...)."""


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval over `num_prompts` prompts; its bounds are NaN for one prompt.

    A figure that cannot be determined has an `unknown_reason`, and NaN for all its numbers.
    """

    mean: float
    ci_low: float
    ci_high: float
    num_prompts: int
    level: float = 0.95
    """Probability that the interval contains the truth."""
    unknown_reason: str | None = None

    @classmethod
    def unknown(cls, reason: str, num_prompts: int, level: float = 0.95) -> Interval:
        """Return a figure that cannot be determined, with the reason."""
        return cls(math.nan, math.nan, math.nan, num_prompts, level, reason)

    @property
    def is_known(self) -> bool:
        """False if the figure cannot be determined."""
        return self.unknown_reason is None

    @property
    def excludes_zero(self) -> bool:
        """True if the interval is above or below zero: a difference beyond chance."""
        return self.ci_low > 0 or self.ci_high < 0

    @property
    def few_prompts(self) -> bool:
        """True if there are too few prompts for a firm statement."""
        return self.num_prompts < MIN_PROMPTS

    def to_json(self) -> dict[str, float | int | bool | str | None]:
        """Return plain values, with None for NaN."""
        mean, low, high = (
            None if math.isnan(value) else value for value in (self.mean, self.ci_low, self.ci_high)
        )
        return {
            "mean": mean,
            "ci_low": low,
            "ci_high": high,
            "level": self.level,
            "num_prompts": self.num_prompts,
            "few_prompts": self.few_prompts,
            "unknown_reason": self.unknown_reason,
        }


def mean_interval(
    values: ArrayLike, groups: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> Interval:
    """Return the mean over prompts of `values` (N,); `groups` (N,) names the prompt of each value.

    Without `groups` each value is a prompt of its own. Every prompt has the same weight, whatever its number
    of seeds. `level` is the nominal coverage. Raises ValueError for no values, or ones that are not finite.
    """
    units = group_means(values, range(np.size(values)) if groups is None else groups)
    check_level(level)
    count, mean = len(units), float(units.mean())
    if count < 2:
        return Interval(mean, math.nan, math.nan, count, level)
    deviations = units - mean
    variance = float((deviations**2).mean())
    skewness = float((deviations**3).mean()) / variance**1.5 if variance > 0 else 0.0
    error = math.sqrt(variance / (count - 1))
    t = student_quantile((1 + level) / 2, count - 1)
    high, low = (_without_skewness(bound, skewness, count) for bound in (-t, t))
    return Interval(mean, mean - error * low, mean - error * high, count, level)


def _without_skewness(quantile: float, skewness: float, count: int) -> float:
    """Return the quantile of a studentized mean by Hall's cubic transformation (1992), which removes the
    skewness of the data from it and can be inverted.
    """
    skewness = min(max(skewness, -_MAX_SKEWNESS), _MAX_SKEWNESS)
    if abs(skewness) < 1e-6:
        return quantile
    root = math.sqrt(count)
    cube = 1 + skewness * (quantile / root - skewness / (6 * count))
    return 3 * root / skewness * (math.copysign(abs(cube) ** (1 / 3), cube) - 1)


def holm(interval_at: Sequence[Callable[[float], Interval]], level: float = 0.95) -> list[bool]:
    """Return which of K differences are beyond chance, for all together with probability `level` (Holm 1979).

    Each entry of `interval_at` returns the interval of one difference at a level.
    """
    is_beyond = [False] * len(interval_at)
    while remaining := [index for index, value in enumerate(is_beyond) if not value]:
        own_level = 1 - (1 - level) / len(remaining)
        new = [index for index in remaining if interval_at[index](own_level).excludes_zero]
        if not new:
            break
        for index in new:
            is_beyond[index] = True
    return is_beyond


def check_level(level: float) -> None:
    """Raise ValueError unless a level lies between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")


def bootstrap(
    table: NDArray[np.float64],
    statistic: Statistic,
    *,
    n: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return a function of column means, such as a ratio of two, over `table` (G, K), one row per prompt.

    `statistic` maps means (..., K) to numbers (...). Whole rows are resampled, so that columns stay paired.
    The interval's `mean` is the statistic of the means themselves.
    """
    if not 0 < level < 1 or n < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, and n {n} be at least 1")
    units = len(table)
    mean = float(statistic(table.mean(0)))
    if units < 2:
        return Interval(mean, math.nan, math.nan, units, level)
    resamples = np.concatenate([statistic(part) for part in resampled_means(table, n, seed)])
    resamples = resamples[np.isfinite(resamples)]  # a ratio with a denominator of zero
    if not len(resamples):
        return Interval(mean, math.nan, math.nan, units, level)
    tail = _tail(level, units)
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), units, level)


def group_means(values: ArrayLike, groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """Return the mean of each group (G,), in order of first appearance."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or len(array) != len(groups):
        raise ValueError(
            f"need one group for each of at least one value, got {array.shape} and {len(groups)}"
        )
    if not np.isfinite(array).all():
        raise ValueError("a value is not finite")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, weights=array) / np.bincount(index)


def resampled_means(table: NDArray[np.float64], n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield column means of `n` resamples of the rows of `table` (G, K), in chunks (m, K)."""
    units = len(table)
    rows = max(1, _CHUNK // units)
    for start in range(0, n, rows):
        yield _counts(units, min(rows, n - start), seed, start) @ table / units


@lru_cache(maxsize=8)
def _counts(units: int, n: int, seed: int, start: int) -> NDArray[np.float64]:
    """Return the counts (n, units) of each row in `n` resamples; a mean depends on nothing else."""
    rng = np.random.default_rng([seed, start])
    return rng.multinomial(units, np.full(units, 1 / units), size=n).astype(np.float64)


def _tail(level: float, units: int) -> float:
    """Return the share to cut from each side: Phi(-sqrt(G / (G - 1)) * t), t with G - 1 degrees of
    freedom."""
    normal = NormalDist()
    t = student_quantile((1 + level) / 2, units - 1)
    return normal.cdf(-math.sqrt(units / (units - 1)) * t)


@lru_cache(maxsize=4096)
def student_quantile(share: float, freedom: float) -> float:
    """Return a quantile of Student's t for share >= 1/2 and any degrees of freedom from 1 on.

    With t = sqrt(freedom) tan(angle), the density of the angle is proportional to cos(angle)^(freedom - 1),
    which is integrated here. From `_LARGE_FREEDOM` on, t is the normal quantile with its first correction.
    """
    if freedom > _LARGE_FREEDOM:
        z = NormalDist().inv_cdf(share)
        return z + (z**3 + z) / (4 * freedom)
    angles = np.linspace(0, math.pi / 2, _ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    areas = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    angle = np.interp(2 * share - 1, areas / areas[-1], angles)
    return math.sqrt(freedom) * math.tan(float(angle))
