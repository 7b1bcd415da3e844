"""Confidence intervals of shares: of right answers, of copies. Several seeds of one prompt are alike.

A share of 0 or 100 % is not certain because all images agree, so resampling them does not help. Wilson's
interval (1927) has a width there; a design effect reduces the number of images to that of independent ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lorakit.core.statistics import Interval, check_level, group_means, student_quantile

_PRIOR_CORRELATION = 0.25  # of the answers to two seeds of a prompt, where the images say nothing about it
_PRIOR_WEIGHT = 4  # prompts that the prior correlation counts for
_MIN_SCALE = 0.1


def share_interval(values: ArrayLike, groups: Sequence[Hashable], *, level: float = 0.95) -> Interval:
    """Return the mean over prompts of `values` (N,) between 0 and 1, such as right or wrong answers.

    Wilson's interval for the number of independent images that are worth as much as these: the seeds of a
    prompt resemble each other, which divides it by the design effect. It has a width for equal values too.
    """
    check_level(level)
    sample = _ShareSample.of(values, groups)
    if sample.num_groups < 2:
        return Interval(sample.mean, math.nan, math.nan, sample.num_groups, level)
    t = student_quantile((1 + level) / 2, sample.num_groups - 1 + 2 * _PRIOR_WEIGHT)
    size, p = sample.effective_size, sample.mean
    center = (p + t * t / (2 * size)) / (1 + t * t / size)
    margin = t / (1 + t * t / size) * math.sqrt(p * (1 - p) / size + (t / (2 * size)) ** 2)
    return Interval(p, max(center - margin, 0.0), min(center + margin, 1.0), sample.num_groups, level)


def share_difference(
    first: ArrayLike, second: ArrayLike, groups: Sequence[Hashable], *, level: float = 0.95
) -> Interval:
    """Return the mean of `second` minus that of `first`, shares (N,) of the same images in the same order.

    Newcombe's interval (1998, his method 10) of paired shares: from the interval of each and the correlation
    of the prompts, so that it has a width for equal values too.
    """
    one, other = (share_interval(values, groups, level=level) for values in (first, second))
    means = [group_means(values, groups) for values in (first, second)]
    difference = other.mean - one.mean
    correlation = 0.0
    if min(mean.std() for mean in means) > 0:
        events = min(_ShareSample.of(values, groups).rarer_count for values in (first, second))
        raw = float(np.corrcoef(means[0], means[1])[0, 1])
        correlation = max(raw, 0.0) * events / (events + _PRIOR_WEIGHT)

    def margin(a: float, b: float) -> float:
        return math.sqrt(max(a * a + b * b - 2 * correlation * a * b, 0.0))

    below = margin(other.mean - other.ci_low, one.ci_high - one.mean)
    above = margin(other.ci_high - other.mean, one.mean - one.ci_low)
    return Interval(difference, difference - below, difference + above, one.num_prompts, level)


@dataclass(frozen=True)
class _ShareSample:
    """A share of clustered images."""

    mean: float
    num_groups: int
    rarer_count: float
    """Number of images with the rarer outcome: how much is known about the clustering."""
    effective_size: float

    @classmethod
    def of(cls, values: ArrayLike, groups: Sequence[Hashable]) -> _ShareSample:
        """Measure the design effect, the variance of a mean of clustered images over that of independent
        ones; with few images of the rarer outcome the prior correlation of a prompt's images decides.
        """
        array, means = np.asarray(values, dtype=np.float64), group_means(values, groups)
        if array.min() < 0 or array.max() > 1:
            raise ValueError("a share lies between 0 and 1")
        count, num_groups, mean = len(array), len(means), float(means.mean())
        sizes = Counter(groups)
        inverse_sizes = group_means([1 / sizes[group] for group in groups], groups)
        size = 1 / float(inverse_sizes.mean())  # images of a prompt
        spread = mean * (1 - mean)
        rarer = float(min(array.sum(), count - array.sum()))
        # values between 0 and 1 vary less than right and wrong answers
        scale = max(float(((array - mean) ** 2).mean()) / spread, _MIN_SCALE) if spread > 0 else 1.0
        prior = scale * (1 + (size - 1) * _PRIOR_CORRELATION)
        weight = min(num_groups - 1, rarer)
        observed = prior
        if spread > 0 and num_groups > 1:
            observed = float(means.var(ddof=1)) * size / (spread * count / (count - 1))
        effect = (_PRIOR_WEIGHT * prior + weight * observed) / (_PRIOR_WEIGHT + weight)
        effect = min(max(effect, scale), scale * size)
        return cls(mean, num_groups, rarer, num_groups * size / effect)
