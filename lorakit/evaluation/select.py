"""Which checkpoint to take, and how sure that is.

The best of many noisy scores overstates itself, so half of the prompts choose and the others report; and of
checkpoints that cannot be told apart the earliest is taken, for it has had the least time to overfit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lorakit.core import rng
from lorakit.core.statistics import MIN_PROMPTS, Interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm, DriftBudget
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.score_table import Evaluation, VariantScores

MIN_PROMPTS_TO_SPLIT = 8  # prompts of the subject below which none are held back


@dataclass(frozen=True)
class VariantQuality:
    """One arm on all prompts of the subject."""

    arm: VariantScores
    fidelity: Interval | None
    adherence: Interval | None
    alarms: list[Alarm]


@dataclass(frozen=True)
class Selection:
    """`arm` is None when every arm has an alarm, or nothing can be told; `why` says it.

    `quality` and what follows are told by the prompts that did not choose.
    """

    arm: VariantScores | None
    why: str
    standings: list[VariantQuality]
    budget: DriftBudget | None = None
    quality: Interval | None = None
    fidelity: Interval | None = None
    adherence: Interval | None = None
    runners_up: list[str] = field(default_factory=list)
    """Names of arms that these prompts cannot tell from the pick."""
    held_back: bool = True
    indicative: bool = False

    @property
    def passed(self) -> list[VariantScores]:
        """The arms without an alarm."""
        return [standing.arm for standing in self.standings if not standing.alarms]

    def to_json(self) -> dict[str, object]:
        """The answer of `lorakit eval pick --json`."""
        shown = {"quality": self.quality, "fidelity": self.fidelity, "adherence": self.adherence}
        return {
            "pick": self.arm.name if self.arm else None,
            "step": self.arm.step if self.arm else None,
            "strength": self.arm.strength if self.arm else None,
            "why": self.why,
            "runners_up": self.runners_up,
            "indicative": self.indicative,
            "drift_budget": vars(self.budget) if self.budget else None,
            **{name: value.to_json() if value else None for name, value in shown.items()},
            "alarms": {s.arm.name: [alarm.text for alarm in s.alarms] for s in self.standings if s.alarms},
        }


def split_prompts(prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(those that choose, those that report): every other prompt of each kind, by keyed draw."""
    if len(prompts) < MIN_PROMPTS_TO_SPLIT:
        return prompts, prompts
    order = sorted(prompts, key=lambda prompt: (prompt.kind, rng.derive_seed(0, "half", prompt.id)))
    return order[::2], order[1::2]


def select_checkpoint(evaluation: Evaluation, drift: float | None = None) -> Selection:
    """Discard arms with alarms, take the best on half of the prompts, then the earliest that is as good.

    As good: within one standard error of the paired difference. `drift` overrides the drift budget that the
    evaluation was made with.
    """
    drift = evaluation.settings.get("drift budget") if drift is None else drift
    subject = evaluation.of_role("subject")
    tuned = evaluation.tuned
    budget = alarms.drift_budget(evaluation, drift)
    whole = NormalizedScores(evaluation, tuned, subject)
    standings = [
        VariantQuality(
            arm,
            whole.interval("fidelity", row),
            whole.interval("adherence", row),
            alarms.find_alarms(evaluation, arm, budget),
        )
        for row, arm in enumerate(tuned)
    ]
    few = len(subject) < MIN_PROMPTS
    left = [standing.arm for standing in standings if not standing.alarms]
    if why := _why_no_selection(evaluation, whole, subject, left):
        return Selection(None, why, standings, budget, indicative=few)
    choosing, reporting = split_prompts(subject)
    chosen = _earliest_within_one_se(NormalizedScores(evaluation, left, choosing))
    scale = NormalizedScores(evaluation, left, reporting)
    rivals = [row for row in range(len(left)) if row != chosen]
    ties = [left[row].name for row in rivals if _is_tie(scale.difference(chosen, row))]
    return Selection(
        left[chosen],
        "the earliest without alarm within one standard error of the best",
        standings,
        budget,
        scale.interval("quality", chosen),
        scale.interval("fidelity", chosen),
        scale.interval("adherence", chosen),
        ties,
        held_back=choosing is not reporting,
        indicative=few,
    )


def _why_no_selection(
    evaluation: Evaluation, scale: NormalizedScores, subject: list[Prompt], left: list[VariantScores]
) -> str | None:
    """Why there is no pick, if there is none."""
    if not evaluation.tuned or evaluation.base is None:
        return "there is no base to compare with"
    if not subject:
        return "no prompt asks for the subject"
    if not (scale.controls.fidelity or scale.controls.adherence):
        return "neither fidelity nor adherence can be told: the base's pictures already match the controls"
    return None if left else "every arm has an alarm"


def _earliest_within_one_se(scale: NormalizedScores) -> int:
    """The index of the first arm that is no more than one standard error worse than the best."""
    point, drawn = scale.qualities()
    best = int(point.argmax())
    if len(scale.table) < 2:
        return best
    errors = (drawn[:, [best]] - drawn).std(0)
    return int(np.flatnonzero(point[best] - point <= errors)[0])


def _is_tie(difference: Interval) -> bool:
    return not (difference.low > 0 or difference.high < 0)
