"""The rule that chooses a variant, and its choices without some of the prompts, for figures without bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lorakit.evaluation.quality import NormalizedScores

FloatArray = NDArray[np.float64]
Worsening = Callable[[int, int], list[str]]
"""(earlier variant, later variant) -> names of the scores that are worse at the later one."""
MAX_FOLDS = 4
"""With more, intervals cover too rarely, because the folds' choices share most of their prompts; with two,
the choices are worse. Figures are unbiased with three or more."""
PARTITIONS = 5  # into folds, at random; their mean depends less on chance
MIN_CROSS_FIT_PROMPTS = 4


def choose_variant(scores: NormalizedScores, pool: Sequence[int], worsening: Worsening) -> int:
    """Return the variant of `pool`, in order of training, that is recommended.

    It is the best by quality, or the earliest within one standard error of it if something worsens between
    the two. If fidelity is unknown, quality does not say how much was learned; then it is the last variant
    that is not clearly worse than the best.
    """
    indices = list(pool)
    quality = scores.quality.combine(np.eye(scores.num_variants)[:, indices])
    best = int(quality.values.argmax())
    if not scores.anchors.has_fidelity:
        return indices[int(np.flatnonzero(quality.not_clearly_worse())[-1])]
    if not quality.has_intervals:
        return indices[best]
    weights = -np.eye(len(indices))
    weights[best] += 1
    gaps = quality.combine(weights)
    near = gaps.values <= np.sqrt(gaps.variances())
    for index in np.flatnonzero(near[:best]):
        if worsening(indices[index], indices[best]):
            return indices[index]
    return indices[best]


def cross_fitted_weights(
    scores: NormalizedScores,
    pool: Sequence[int],
    worsening: Worsening,
    *,
    folds: int = MAX_FOLDS,
    partitions: int = PARTITIONS,
) -> FloatArray | None:
    """Return the weights (G, A) of the variants on each prompt: in how many of several partitions of the
    prompts the other folds select a variant. None for fewer than `MIN_CROSS_FIT_PROMPTS` prompts.
    """
    count = scores.scores.num_prompts
    if count < MIN_CROSS_FIT_PROMPTS:
        return None
    weights = np.zeros((count, scores.num_variants))
    for partition in range(partitions):
        order = np.random.default_rng(partition).permutation(count)
        for fold in range(min(folds, count)):
            own = order[fold::folds]
            others = np.setdiff1d(order, own).tolist()
            part = NormalizedScores.from_scores(scores.scores.select_prompts(others), scores.num_variants)
            weights[own, choose_variant(part, pool, worsening)] += 1 / partitions
    return weights
