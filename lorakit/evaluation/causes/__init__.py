"""Causes of a result, each a small function with its evidence: of the data, the settings or the training.

`RULES` holds them in the order of their weight: a mistake in the data explains whatever follows from it, so
it comes first.
"""

from __future__ import annotations

from collections.abc import Callable

from lorakit.evaluation.causes.case import Case, Cause, CauseName, find_alarm, strength_of
from lorakit.evaluation.causes.data import (
    captions_mismatched,
    one_image,
    trigger_in_no_caption,
    two_subjects,
)
from lorakit.evaluation.causes.training import (
    DAMAGES,
    damaged,
    nothing_learned,
    rank_too_low,
    still_rising,
    strength_too_high,
)

RULES: tuple[Callable[[Case], Cause | None], ...] = (
    captions_mismatched,
    one_image,
    trigger_in_no_caption,
    two_subjects,
    strength_too_high,
    nothing_learned,
    damaged,
    rank_too_low,
    still_rising,
)


def find_causes(case: Case) -> list[Cause]:
    """Return all causes that the rules find, the weightiest first."""
    return [cause for rule in RULES if (cause := rule(case))]


__all__ = ["DAMAGES", "Case", "Cause", "CauseName", "find_alarm", "find_causes", "strength_of"]
