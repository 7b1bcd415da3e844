"""Alarms: faults of a variant that exceed chance, such as copied images, drift or ignored prompts.

The limits are calibrated on the base model's or the reference images of the same evaluation. An alarm says
what is wrong; it hides no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from lorakit.evaluation.alarms.alarm import ADVICE, MAX_EXAMPLES, Alarm, AlarmName, Level
from lorakit.evaluation.alarms.overcooked import overcooked
from lorakit.evaluation.alarms.side_effects import (
    MIN_DIVERSITY_RATIO,
    DriftLimit,
    class_leakage,
    diversity_ratio,
    drift,
    drift_limit,
    low_diversity,
    no_effect,
    prompt_ignored,
)
from lorakit.evaluation.alarms.training_images import copied_images, memorization, overfitting
from lorakit.evaluation.score_table import Evaluation, VariantScores

__all__ = [
    "ADVICE",
    "MAX_EXAMPLES",
    "MIN_DIVERSITY_RATIO",
    "Alarm",
    "AlarmName",
    "DriftLimit",
    "Level",
    "diversity_ratio",
    "drift_limit",
    "find_alarms",
]


def find_alarms(
    evaluation: Evaluation, variant: VariantScores, max_drift: DriftLimit | None = None
) -> list[Alarm]:
    """Return all alarms of a variant: those beyond their limit first, then by how serious they are."""
    checks: list[Callable[[], Alarm | None]] = [
        lambda: copied_images(evaluation, variant),
        lambda: memorization(evaluation, variant),
        lambda: overfitting(evaluation, variant),
        lambda: overcooked(evaluation, variant),
        lambda: prompt_ignored(evaluation, variant),
        lambda: low_diversity(evaluation, variant),
        lambda: drift(evaluation, variant, max_drift),
        lambda: class_leakage(evaluation, variant),
        lambda: no_effect(evaluation, variant),
    ]
    alarms = [alarm for check in checks if (alarm := check())]
    return sorted(alarms, key=lambda alarm: alarm.level != "alarm")
