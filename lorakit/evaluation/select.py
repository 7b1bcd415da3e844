"""Which checkpoint to take, and how sure that is.

The best of many noisy scores overstates itself, so half of the prompts choose and the others report; and of
checkpoints that cannot be told apart the earliest is taken, for it has had the least time to overfit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lorakit.core import rng
from lorakit.core.statistics import ENOUGH_PROMPTS, Interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm, Budget
from lorakit.evaluation.quality import Scale
from lorakit.evaluation.score_table import Arm, Evaluation

FEWEST = 8  # prompts of the subject below which none are held back


@dataclass(frozen=True)
class Standing:
    """One arm on all prompts of the subject."""

    arm: Arm
    fidelity: Interval | None
    adherence: Interval | None
    alarms: list[Alarm]


@dataclass(frozen=True)
class Pick:
    """`arm` is None when every arm has an alarm, or nothing can be told; `why` says it.

    `quality` and what follows are told by the prompts that did not choose.
    """

    arm: Arm | None
    why: str
    standings: list[Standing]
    budget: Budget | None = None
    quality: Interval | None = None
    fidelity: Interval | None = None
    adherence: Interval | None = None
    runners_up: list[str] = field(default_factory=list)
    """Names of arms that these prompts cannot tell from the pick."""
    held_back: bool = True
    indicative: bool = False

    @property
    def passed(self) -> list[Arm]:
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


def halves(prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(those that choose, those that report): every other prompt of each kind, by keyed draw."""
    if len(prompts) < FEWEST:
        return prompts, prompts
    order = sorted(prompts, key=lambda prompt: (prompt.kind, rng.key(0, "half", prompt.id)))
    return order[::2], order[1::2]


def pick(evaluation: Evaluation, drift: float | None = None) -> Pick:
    """Discard arms with alarms, take the best on half of the prompts, then the earliest that is as good.

    As good: within one standard error of the paired difference. `drift` overrides the drift budget that the
    evaluation was made with.
    """
    drift = evaluation.settings.get("drift budget") if drift is None else drift
    subject = evaluation.of_role("subject")
    tuned = evaluation.tuned
    budget = alarms.drift_budget(evaluation, drift)
    whole = Scale(evaluation, tuned, subject)
    standings = [
        Standing(
            arm,
            whole.interval("fidelity", row),
            whole.interval("adherence", row),
            alarms.find(evaluation, arm, budget),
        )
        for row, arm in enumerate(tuned)
    ]
    few = len(subject) < ENOUGH_PROMPTS
    left = [standing.arm for standing in standings if not standing.alarms]
    if why := _nothing_to_tell(evaluation, whole, subject, left):
        return Pick(None, why, standings, budget, indicative=few)
    choosing, reporting = halves(subject)
    chosen = _earliest_as_good(Scale(evaluation, left, choosing))
    scale = Scale(evaluation, left, reporting)
    rivals = [row for row in range(len(left)) if row != chosen]
    ties = [left[row].name for row in rivals if _undecided(scale.difference(chosen, row))]
    return Pick(
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


def _nothing_to_tell(
    evaluation: Evaluation, scale: Scale, subject: list[Prompt], left: list[Arm]
) -> str | None:
    """Why there is no pick, if there is none."""
    if not evaluation.tuned or evaluation.base is None:
        return "there is no base to compare with"
    if not subject:
        return "no prompt asks for the subject"
    if not (scale.controls.fidelity or scale.controls.adherence):
        return "neither fidelity nor adherence can be told: the base's pictures already match the controls"
    return None if left else "every arm has an alarm"


def _earliest_as_good(scale: Scale) -> int:
    """The index of the first arm that is no more than one standard error worse than the best."""
    point, drawn = scale.qualities()
    best = int(point.argmax())
    if len(scale.table) < 2:
        return best
    errors = (drawn[:, [best]] - drawn).std(0)
    return int(np.flatnonzero(point[best] - point <= errors)[0])


def _undecided(difference: Interval) -> bool:
    return not (difference.low > 0 or difference.high < 0)
