"""The rule that chooses a variant, and its choices without some of the prompts, for figures without bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lorakit.evaluation.quality import NormalizedScores

Worsening = Callable[[int, int], list[str]]
"""(earlier variant, later variant) -> names of the scores that are worse at the later one."""
MAX_FOLDS = 4
"""With more, intervals cover too rarely, because the folds' choices share most of their prompts; with two, the
choices are worse. Figures are unbiased with three or more."""
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


def cross_fitted_choices(
    scores: NormalizedScores, pool: Sequence[int], worsening: Worsening, max_folds: int = MAX_FOLDS
) -> tuple[list[int], int]:
    """Return for each prompt (G,) the variant that the prompts of the other folds select, and the number of
    folds; 0 folds and no choices for fewer than `MIN_CROSS_FIT_PROMPTS` prompts.
    """
    count = scores.scores.num_prompts
    if count < MIN_CROSS_FIT_PROMPTS:
        return [], 0
    num_folds = min(max_folds, count)
    order = np.random.default_rng(0).permutation(count)  # kinds of prompts may alternate
    choices = np.zeros(count, dtype=int)
    for fold in range(num_folds):
        others = np.sort(np.delete(order, np.s_[fold::num_folds])).tolist()
        part = NormalizedScores.from_scores(scores.scores.select_prompts(others), scores.num_variants)
        choices[order[fold::num_folds]] = choose_variant(part, pool, worsening)
    return choices.tolist(), num_folds
