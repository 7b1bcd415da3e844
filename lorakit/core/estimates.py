"""Figures that are estimated together, each with the uncertainty of every random sample behind it.

Images are samples of prompts, and the images that they are compared with are samples of a subject. Both are
sources of uncertainty with a covariance of their own. Figures that share a source are compared in pairs: what
they have in common cancels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import Interval, student_quantile

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Variation:
    """The covariance of K figures due to one random sample."""

    covariance: FloatArray  # (K, K)
    freedom: float
    """Degrees of freedom that the covariance is estimated with; 0 if it is unknown."""


def variation_of_means(rows: FloatArray, strata: Sequence[Hashable] = ()) -> Variation:
    """Return the variation of the means of the columns of `rows` (n, K), one row for each sampled unit.

    `strata` (n,) names the group of each row if the number of rows from each group is fixed.
    """
    count = len(rows)
    groups: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata or [0] * count):
        groups.setdefault(stratum, []).append(index)
    freedom = count - len(groups)
    if freedom < 1:
        return Variation(np.zeros((rows.shape[1], rows.shape[1])), 0)
    deviations = np.empty_like(rows)
    for indices in groups.values():
        deviations[indices] = rows[indices] - rows[indices].mean(0)
    return Variation(deviations.T @ deviations / (count * freedom), freedom)


@dataclass(frozen=True)
class Estimates:
    """K figures with the sources of their uncertainty."""

    values: FloatArray  # (K,)
    sources: tuple[Variation, ...]
    num_prompts: int

    @property
    def has_intervals(self) -> bool:
        """False if the uncertainty from a source is unknown, as for one prompt."""
        return bool(self.sources) and all(source.freedom > 0 for source in self.sources)

    def transform(self, values: FloatArray, matrix: FloatArray) -> Estimates:
        """Return J other figures; `matrix` (K, J) has their derivatives, the weights of linear ones."""
        sources = tuple(Variation(matrix.T @ s.covariance @ matrix, s.freedom) for s in self.sources)
        return Estimates(values, sources, self.num_prompts)

    def select(self, indices: Sequence[int]) -> Estimates:
        """Return some of the figures."""
        return self.combine(np.eye(len(self.values))[:, list(indices)])

    def combine(self, matrix: FloatArray) -> Estimates:
        """Return J linear combinations with the weights `matrix` (K, J)."""
        return self.transform(self.values @ matrix, matrix)

    def variances(self) -> FloatArray:
        """Return the variance of each figure (K,), the sum over the sources."""
        return np.sum([np.diag(source.covariance) for source in self.sources], axis=0)

    def freedom(self) -> FloatArray:
        """Return the degrees of freedom of each variance (K,), by Satterthwaite's formula."""
        parts = np.array([np.diag(source.covariance) for source in self.sources])  # (S, K)
        degrees = np.array([max(source.freedom, 1) for source in self.sources])[:, None]
        total, weighted = parts.sum(0), (parts**2 / degrees).sum(0)
        return np.where(weighted > 0, total**2 / np.where(weighted > 0, weighted, 1), degrees.sum())

    def interval(self, index: int, level: float = 0.95) -> Interval:
        """Return a figure with Student's interval."""
        value = float(self.values[index])
        if not self.has_intervals:
            return Interval(value, np.nan, np.nan, self.num_prompts, level)
        t = _quantile((1 + level) / 2, self.freedom()[index])
        margin = t * float(np.sqrt(max(self.variances()[index], 0.0)))
        return Interval(value, value - margin, value + margin, self.num_prompts, level)

    def difference(self, first: int, second: int, level: float = 0.95) -> Interval:
        """Return one figure minus another."""
        weights = np.zeros((len(self.values), 1))
        weights[first] += 1
        weights[second] -= 1
        return self.combine(weights).interval(0, level)

    def ratio(self, numerator: int, denominator: int, level: float = 0.95) -> Interval | None:
        """Return the ratio of two figures with Fieller's interval: all ratios r for which `numerator - r *
        denominator` may be zero. None if the denominator may be zero, so that no ratio can be excluded.
        """
        above, below = float(self.values[numerator]), float(self.values[denominator])
        if below <= 0:
            return None
        value = above / below
        if not self.has_intervals:
            return Interval(value, np.nan, np.nan, self.num_prompts, level)
        weights = np.zeros((len(self.values), 1))
        weights[numerator] += 1
        weights[denominator] -= value
        t = _quantile((1 + level) / 2, self.combine(weights).freedom()[0])
        columns = np.ix_([numerator, denominator], [numerator, denominator])
        covariance = t * t * np.sum([source.covariance[columns] for source in self.sources], axis=0)
        # (numerator - r denominator)^2 <= t^2 variance is quadratic in r: a r^2 - 2 b r + c <= 0
        a, b, c = below**2 - covariance[1, 1], above * below - covariance[0, 1], above**2 - covariance[0, 0]
        if a <= 0:
            return None
        root = np.sqrt(max(b * b - a * c, 0.0))
        return Interval(value, float((b - root) / a), float((b + root) / a), self.num_prompts, level)

    def not_clearly_worse(
        self, level: float = 0.95, margin: float = 0.0, leader: int | None = None
    ) -> list[bool]:
        """Return, for each figure, True unless it is worse than `leader` beyond chance (the largest if None).

        With probability `level` or more, for all K figures together (Bonferroni), either the one that is
        truly the largest is among them, or the leader is truly within `margin` of it.
        """
        count = len(self.values)
        leader = int(self.values.argmax()) if leader is None else leader
        if count < 2 or not self.has_intervals:
            return [True] * count
        weights = -np.eye(count)
        weights[leader] += 1
        gaps = self.combine(weights)
        share = 1 - (1 - level) / (count - 1)
        limits = np.array([_quantile(share, freedom) for freedom in gaps.freedom()])
        kept = gaps.values + margin <= limits * np.sqrt(np.maximum(gaps.variances(), 0))
        kept[leader] = True
        return [bool(value) for value in kept]


def _quantile(share: float, freedom: float) -> float:
    """Return a quantile of Student's t for rounded degrees of freedom, which are computed once."""
    return student_quantile(share, max(1.0, round(float(freedom), 1)))
