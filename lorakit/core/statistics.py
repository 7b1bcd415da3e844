"""Confidence intervals for scores of images from prompts and seeds; the prompt is the unit.

Images of one prompt resemble each other, so treating them as independent gives intervals that are too
narrow. Each prompt is therefore first averaged over its seeds, and whole prompts are resampled. The
percentile interval of few units is too narrow as well; its levels are widened as by Hesterberg, "What
Teachers Should Know About the Bootstrap" (2015), so that it matches Student's t interval on normal data.
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

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Means (..., K) -> numbers (...)."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval over `num_prompts` prompts; its bounds are NaN for one prompt."""

    mean: float
    ci_low: float
    ci_high: float
    num_prompts: int

    @property
    def few_prompts(self) -> bool:
        """True if there are too few prompts for a firm statement."""
        return self.num_prompts < MIN_PROMPTS

    def to_json(self) -> dict[str, float | int | bool | None]:
        """Return plain values, with None for NaN."""
        low, high = (None if math.isnan(value) else value for value in (self.ci_low, self.ci_high))
        return {
            "mean": self.mean,
            "ci_low": low,
            "ci_high": high,
            "num_prompts": self.num_prompts,
            "few_prompts": self.few_prompts,
        }


def bootstrap_mean(
    values: ArrayLike,
    groups: Sequence[Hashable],
    *,
    n: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean over prompts of `values` (N,); `groups` (N,) names the prompt of each value.

    Every prompt has the same weight, whatever its number of seeds. `n` is the number of resamples and `level`
    the nominal coverage; `seed` makes the interval repeatable. Raises ValueError for no values, or ones that
    are not finite.
    """
    means = group_means(values, groups)
    return bootstrap(means[:, None], lambda row: row[..., 0], n=n, seed=seed, level=level)


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
        return Interval(mean, math.nan, math.nan, units)
    resamples = np.concatenate([statistic(part) for part in resampled_means(table, n, seed)])
    resamples = resamples[np.isfinite(resamples)]  # a ratio with a denominator of zero
    if not len(resamples):
        return Interval(mean, math.nan, math.nan, units)
    tail = _tail(level, units)
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), units)


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


def student_quantile(share: float, freedom: int) -> float:
    """Return a quantile of Student's t for share > 1/2: exact for 1 and 2 degrees of freedom, else a series.

    Abramowitz and Stegun, formula 26.7.5; at the levels used here within 1 % from 3 degrees of freedom on.
    """
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) * math.sqrt(2 / (4 * share * (1 - share)))
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
