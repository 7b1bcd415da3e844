"""Checkpoint selection, and the certainty of the choice.

All prompts select: the best by quality among the variants without an alarm. The best of many noisy scores
overstates itself, so its figures are cross-fitted: on each prompt they are those of the variant that the
other prompts select. An earlier checkpoint within one standard error of the best is preferred only where
something worsens between the two; without a reason, more training is not a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorakit.core.statistics import MIN_PROMPTS, Interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm, DriftLimit
from lorakit.evaluation.cross_fit import MAX_FOLDS, Worsening, choose_variant, cross_fitted_weights
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.worsening import worsened_scores

FAMILY_LEVEL = 0.95
"""Probability that the best variant is the selected one or among those that it is tied with."""
MIN_RISE = 0.01  # of quality from one checkpoint to the next, from which more training pays


@dataclass(frozen=True)
class VariantQuality:
    """Scores and alarms of one variant on all prompts of the subject that it was measured on."""

    variant: VariantScores
    fidelity: Interval | None
    prompt_adherence: Interval | None
    alarms: list[Alarm]
    quality: Interval | None = None
    num_prompts: int = 0

    @property
    def has_alarm(self) -> bool:
        """True if the variant has an alarm, not only warnings."""
        return any(alarm.level == "alarm" for alarm in self.alarms)

    def to_json(self) -> dict[str, Any]:
        """Plain values; alarms are listed by name."""
        variant, names = self.variant, ("quality", "fidelity", "prompt_adherence")
        intervals = {name: getattr(self, name) for name in names}
        return {
            "name": variant.name,
            "step": variant.step,
            "strength": variant.strength,
            "num_prompts": self.num_prompts,
            **{name: value.to_json() if value else None for name, value in intervals.items()},
            "alarms": [alarm.name for alarm in self.alarms if alarm.level == "alarm"],
            "warnings": [alarm.name for alarm in self.alarms if alarm.level != "alarm"],
        }


@dataclass(frozen=True)
class Selection:
    """The recommended variant, None only if nothing can be measured; `reason` explains it.

    `quality`, `fidelity` and `prompt_adherence` are cross-fitted: not overstated by the choice of the best.
    """

    variant: VariantScores | None
    reason: str
    candidates: list[VariantQuality]
    max_drift: DriftLimit | None = None
    quality: Interval | None = None
    fidelity: Interval | None = None
    prompt_adherence: Interval | None = None
    tied_with: list[str] = field(default_factory=list)
    """Names of variants whose quality cannot be distinguished from that of the best, at `FAMILY_LEVEL`."""
    num_folds: int = 0
    """Parts of the prompts, left out in turn for the cross-fitted figures; 0 if there are too few prompts."""
    few_prompts: bool = False
    best: VariantScores | None = None
    """The best by quality, whatever its alarms."""
    despite_alarms: bool = False
    """True if the recommended variant itself has an alarm, because all have one: it is the least bad."""
    still_rising: bool = False
    """True if quality still rises at the last checkpoint, beyond chance."""
    worsened: list[str] = field(default_factory=list)
    """Scores that are worse at a better but later variant, for which an earlier one is recommended."""
    preferred_by_people: bool | None = None
    """True if a blind vote prefers it to a variant that the scores cannot distinguish from it, False if the
    vote ended without a clear preference, None without such a vote."""

    @property
    def without_alarms(self) -> list[VariantScores]:
        """The variants without an alarm; they may have warnings."""
        return [candidate.variant for candidate in self.candidates if not candidate.has_alarm]

    def to_json(self) -> dict[str, Any]:
        """Plain values: the output of `lorakit eval pick --json`."""
        intervals = {
            "quality": self.quality,
            "fidelity": self.fidelity,
            "prompt_adherence": self.prompt_adherence,
        }
        return {
            "selected": self.variant.name if self.variant else None,
            "step": self.variant.step if self.variant else None,
            "strength": self.variant.strength if self.variant else None,
            "reason": self.reason,
            "best": self.best.name if self.best else None,
            "despite_alarms": self.despite_alarms,
            "still_rising": self.still_rising,
            "worsened": self.worsened,
            "preferred_by_people": self.preferred_by_people,
            "tied_with": self.tied_with,
            "family_level": FAMILY_LEVEL,
            "few_prompts": self.few_prompts,
            "num_folds": self.num_folds,
            "max_drift": vars(self.max_drift) if self.max_drift else None,
            **{name: value.to_json() if value else None for name, value in intervals.items()},
            "variants": [candidate.to_json() for candidate in self.candidates],
            "alarms": {
                candidate.variant.name: [alarm.to_json() for alarm in candidate.alarms]
                for candidate in self.candidates
                if candidate.alarms
            },
        }


def select_checkpoint(evaluation: Evaluation, max_drift: float | None = None) -> Selection:
    """Recommend a variant: the best by quality without an alarm, or an earlier one that is as good.

    If all have alarms, the one with the fewest is the least bad. `max_drift` (1 - cosine) overrides the limit
    in the evaluation's settings.
    """
    max_drift = evaluation.settings.get("max_drift") if max_drift is None else max_drift
    prompts = evaluation.prompts_of_role("subject")
    limit = alarms.drift_limit(evaluation, max_drift)
    candidates = [_assess(evaluation, one, prompts, limit) for one in evaluation.adapter_variants]
    few_prompts = len(prompts) < MIN_PROMPTS
    eligible = _eligible(candidates)
    scores = NormalizedScores(evaluation, [candidate.variant for candidate in eligible], prompts)
    if reason := _why_no_selection(evaluation, scores, prompts):
        return Selection(None, reason, candidates, limit, few_prompts=few_prompts)
    return _Choice(evaluation, candidates, eligible, scores, prompts, limit).selection(few_prompts)


def _assess(
    evaluation: Evaluation, variant: VariantScores, prompts: list[Prompt], limit: DriftLimit | None
) -> VariantQuality:
    scores = NormalizedScores(evaluation, [variant], prompts)
    return VariantQuality(
        variant,
        scores.interval("fidelity", 0),
        scores.interval("prompt_adherence", 0),
        alarms.find_alarms(evaluation, variant, limit),
        scores.interval("quality", 0),
        scores.scores.num_prompts,
    )


def _eligible(candidates: Sequence[VariantQuality]) -> list[VariantQuality]:
    """Return the variants that can be selected, all measured on the same prompts: not guests, and not those
    that a race has stopped.
    """
    own = [c for c in candidates if not (c.variant.is_guest or c.variant.stopped_early)]
    most = max((candidate.num_prompts for candidate in own), default=0)
    return [candidate for candidate in own if candidate.num_prompts == most]


def _why_no_selection(
    evaluation: Evaluation, scores: NormalizedScores, subject_prompts: list[Prompt]
) -> str | None:
    """Return the reason why no variant can be selected, or None."""
    if not evaluation.adapter_variants or evaluation.base is None:
        return "there are no images of the base model to compare with"
    if not subject_prompts:
        return "no prompt is about the subject"
    if scores.num_variants == 0:
        return "there are only images of guests"
    if not (scores.anchors.has_fidelity or scores.anchors.has_prompt_adherence):
        return (
            "neither fidelity nor prompt adherence can be measured: reference images are missing or score "
            "like the base model's, and the base model does not follow the prompts"
        )
    return None


@dataclass
class _Choice:
    """A selection in the making among `eligible` variants, whose `scores` have the same order."""

    evaluation: Evaluation
    candidates: list[VariantQuality]
    eligible: list[VariantQuality]
    scores: NormalizedScores
    prompts: list[Prompt]
    limit: DriftLimit | None
    _worsened: dict[tuple[int, int], list[str]] = field(default_factory=dict)

    def selection(self, few_prompts: bool) -> Selection:
        """Choose among the variants without an alarm, or the least bad one, and report its figures."""
        quality, sound = self.scores.quality.values, self._sound()
        pool = sound or self._least_bad()
        chosen = choose_variant(self.scores, pool, self._worsening)
        leader = pool[int(quality[pool].argmax())]
        weights = cross_fitted_weights(self.scores, pool, self._worsening)
        num_folds = 0 if weights is None else MAX_FOLDS
        if weights is None:
            weights = np.tile(np.eye(len(self.eligible))[chosen], (self.scores.scores.num_prompts, 1))
        figures = NormalizedScores.from_scores(self.scores.scores.combine_variants(weights), 1)
        return Selection(
            self.eligible[chosen].variant,
            self._reason(chosen, leader, is_sound=bool(sound)),
            self.candidates,
            self.limit,
            figures.interval("quality", 0),
            figures.interval("fidelity", 0),
            figures.interval("prompt_adherence", 0),
            [name for name in self._names_of_ties(pool) if name != self.eligible[chosen].variant.name],
            num_folds=num_folds,
            few_prompts=few_prompts,
            best=self.eligible[int(quality.argmax())].variant,
            despite_alarms=not sound,
            still_rising=self._still_rising(chosen),
            worsened=self._worsening(chosen, leader) if chosen != leader else [],
        )

    def _sound(self) -> list[int]:
        return [index for index, candidate in enumerate(self.eligible) if not candidate.has_alarm]

    def _least_bad(self) -> list[int]:
        """Return the variants with the fewest alarms, among those at least half as good as the best."""
        quality = self.scores.quality.values
        useful = [index for index in range(len(self.eligible)) if quality[index] >= quality.max() / 2]
        useful = useful or [int(quality.argmax())]
        counts = {i: sum(a.level == "alarm" for a in self.eligible[i].alarms) for i in useful}
        return [index for index in useful if counts[index] == min(counts.values())]

    def _worsening(self, earlier: int, later: int) -> list[str]:
        key = (earlier, later)
        if key not in self._worsened:
            first, second = self.eligible[earlier].variant, self.eligible[later].variant
            self._worsened[key] = worsened_scores(self.evaluation, first, second, self.limit)
        return self._worsened[key]

    def _names_of_ties(self, pool: list[int]) -> list[str]:
        pairs = self.scores.quality.combine(np.eye(len(self.eligible))[:, pool])
        kept = pairs.not_clearly_worse(FAMILY_LEVEL)
        return [self.eligible[i].variant.name for i, is_tied in zip(pool, kept, strict=True) if is_tied]

    def _reason(self, chosen: int, leader: int, *, is_sound: bool) -> str:
        if not self.scores.anchors.has_fidelity:
            reason = "the last whose prompt adherence is not clearly worse; fidelity cannot be determined"
        elif chosen == leader:
            reason = "the best quality"
        else:
            better = self.eligible[leader].variant.name
            names = ", ".join(self._worsening(chosen, leader))
            reason = f"the earliest within one standard error of the best; {better} is worse in {names}"
        alarms_text = (
            "without an alarm" if is_sound else "with the fewest alarms, since every variant has one"
        )
        return f"{reason}, of those {alarms_text}"

    def _still_rising(self, chosen: int) -> bool:
        """Return True if quality rises over the last checkpoints at the chosen strength, beyond chance."""
        strength = self.eligible[chosen].variant.strength
        series = [
            index
            for index, candidate in enumerate(self.eligible)
            if candidate.variant.strength == strength and candidate.variant.step is not None
        ]
        if len(series) < 2 or self.eligible[series[-1]].has_alarm or not self.scores.anchors.has_fidelity:
            return False
        return is_rising(self.scores, series)


def is_rising(scores: NormalizedScores, series: Sequence[int]) -> bool:
    """Return True if the quality of successive checkpoints rises over the last third of them, beyond chance,
    by at least `MIN_RISE` from one to the next, up to a last one that is the best or cannot be distinguished
    from it.
    """
    quality = scores.quality
    last = list(series)[-max(3, round(len(series) / 3)) :]
    positions = np.arange(len(last)) - (len(last) - 1) / 2
    weights = np.zeros((len(quality.values), 1))
    weights[last, 0] = positions / (positions**2).sum()
    slope = quality.combine(weights).interval(0, 0.9)
    own = quality.combine(np.eye(len(quality.values))[:, list(series)])
    return slope.mean >= MIN_RISE and slope.ci_low > 0 and own.not_clearly_worse()[-1]


__all__ = ["FAMILY_LEVEL", "Selection", "VariantQuality", "Worsening", "is_rising", "select_checkpoint"]
