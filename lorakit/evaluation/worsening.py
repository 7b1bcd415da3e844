"""Scores that are worse at a later checkpoint than at an earlier one: reasons to stop training earlier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lorakit.core.statistics import Interval, mean_interval
from lorakit.evaluation.alarms import MIN_DIVERSITY_RATIO, DriftLimit
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.score_table import Evaluation, VariantScores

RELEVANT_SHARE = 0.1
"""Part of the distance to an alarm's limit from which a change matters; any training changes something."""


def worsened_scores(
    evaluation: Evaluation, earlier: VariantScores, later: VariantScores, limit: DriftLimit | None
) -> list[str]:
    """Return the names of the scores that are worse at the later variant, beyond chance for all together."""
    checks: dict[str, Callable[[float], bool]] = {
        "copies": lambda level: _copies(evaluation, earlier, later, level),
        "drift": lambda level: _drift(evaluation, earlier, later, limit, level),
        "diversity": lambda level: _diversity(evaluation, earlier, later, level),
        "prompt adherence": lambda level: _prompt_adherence(evaluation, earlier, later, level),
        "validation loss": lambda level: _validation_loss(earlier, later, level),
    }
    level = 1 - 0.05 / len(checks)
    return [name for name, is_worse in checks.items() if is_worse(level)]


def _copies(evaluation: Evaluation, earlier: VariantScores, later: VariantScores, level: float) -> bool:
    """Images move closer to their nearest training image by a tenth of its distance to the next copy."""
    name, scale = "nearest_train_similarity", evaluation.copy_scale
    if scale is None:
        return False
    prompts = evaluation.prompts_of_role("subject")
    rise = evaluation.paired_difference(earlier, later, name, prompts, level=level)
    before = evaluation.interval(earlier, name, prompts)
    return rise is not None and before is not None and _exceeds(rise, scale.copy_similarity - before.mean)


def _drift(
    evaluation: Evaluation,
    earlier: VariantScores,
    later: VariantScores,
    limit: DriftLimit | None,
    level: float,
) -> bool:
    prompts = evaluation.prompts_of_role("class", "unrelated")
    rise = evaluation.paired_difference(earlier, later, "drift", prompts, level=level) if prompts else None
    return limit is not None and rise is not None and _exceeds(rise, limit.value)


def _diversity(evaluation: Evaluation, earlier: VariantScores, later: VariantScores, level: float) -> bool:
    """The seeds of a prompt become more alike by a tenth of what the alarm tolerates."""
    if evaluation.base is None:
        return False
    base = evaluation.interval(evaluation.base, "diversity", evaluation.prompts)
    fall = evaluation.paired_difference(later, earlier, "diversity", evaluation.prompts, level=level)
    return base is not None and fall is not None and _exceeds(fall, (1 - MIN_DIVERSITY_RATIO) * base.mean)


def _prompt_adherence(
    evaluation: Evaluation, earlier: VariantScores, later: VariantScores, level: float
) -> bool:
    scores = NormalizedScores(evaluation, [earlier, later], evaluation.prompts_of_role("subject"))
    fall = scores.difference("prompt_adherence", 0, 1, level)
    return fall is not None and fall.is_known and _exceeds(fall, 1.0)


def _validation_loss(earlier: VariantScores, later: VariantScores, level: float) -> bool:
    first, second = (np.array(one.losses.get("validation", [])) for one in (earlier, later))
    if len(first) < 2 or len(first) != len(second):
        return False
    return mean_interval(second - first, level=level).ci_low > 0


def _exceeds(change: Interval, range_to_limit: float) -> bool:
    return change.ci_low > 0 and change.mean > RELEVANT_SHARE * max(range_to_limit, 0)
