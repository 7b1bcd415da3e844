"""A cause of a result, and the evaluation as the rules that find causes see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lorakit.core.statistics import Interval
from lorakit.evaluation.alarms import Alarm, AlarmName
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.run_facts import RunFacts
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection, VariantQuality

CauseName = Literal[
    "captions_mismatched",
    "one_image",
    "trigger_in_no_caption",
    "two_subjects",
    "learning_rate_too_small",
    "stopped_too_early",
    "strength_too_high",
    "rank_too_low",
    "copied_images",
    "memorization",
    "overfitting",
    "prompt_ignored",
    "overcooked",
    "drift",
    "low_diversity",
    "class_leakage",
    "no_effect",
]


NEAR_TRUE_IMAGES = 0.9  # fidelity from which more training is not worth it
MIN_RISE = 0.05  # of fidelity, over the last fifth of the training or more
DATA_CAUSES: tuple[CauseName, ...] = (
    "captions_mismatched",
    "one_image",
    "trigger_in_no_caption",
    "two_subjects",
)


@dataclass(frozen=True)
class Cause:
    """A plain sentence that names a cause and the next step, and the figures behind it."""

    name: CauseName
    sentence: str
    next_step: str
    evidence: str
    is_damage: bool = False
    """True if the images are spoiled, False if the cause only keeps the result from being better."""

    @property
    def is_about_data(self) -> bool:
        """True if the cause lies in the images or captions."""
        return self.name in DATA_CAUSES


@dataclass(frozen=True)
class Case:
    """An evaluation with its selection, as the rules see it."""

    evaluation: Evaluation
    selection: Selection

    @property
    def facts(self) -> RunFacts:
        """The facts of the run; all unknown for images of another generator."""
        return self.evaluation.facts or RunFacts()

    @property
    def candidates(self) -> list[VariantQuality]:
        """The variants of the run, by step and strength."""
        return [candidate for candidate in self.selection.candidates if not candidate.variant.is_guest]

    @property
    def selected(self) -> VariantQuality | None:
        """The recommended variant, unless it is only the least bad one."""
        return None if self.selection.despite_alarms else self._candidate(self.selection.variant)

    @property
    def nearest(self) -> VariantQuality | None:
        """The recommended variant or the least bad one; without either the best by quality, or the last."""
        last = self.candidates[-1] if self.candidates else None
        return self._candidate(self.selection.variant) or self._candidate(self.selection.best) or last

    def _candidate(self, variant: VariantScores | None) -> VariantQuality | None:
        return next((c for c in self.candidates if c.variant is variant), None)

    @property
    def last(self) -> VariantQuality | None:
        """The last checkpoint, at the strength nearest to 1."""
        steps = [c.variant.step or 0 for c in self.candidates]
        own = [c for c in self.candidates if (c.variant.step or 0) == max(steps)]
        return min(own, key=lambda c: abs(strength_of(c) - 1)) if own else None

    @cached_property
    def base_margin(self) -> float | None:
        """CLIP-T of the base model's images with their own prompts, minus that with other prompts."""
        prompts = self.evaluation.prompts_of_role("subject")
        return NormalizedScores(self.evaluation, [], prompts).anchors.base_adherence_margin

    @cached_property
    def is_rising(self) -> bool:
        """True if the last checkpoint is the best and still rises, and is not yet like true images.

        Fidelity is compared over prompts with the checkpoint before: the uncertainty of its scale is the same
        for both and does not count.
        """
        last, selection = self.last, self.selection
        if last is None or find_alarm(last) or selection.best is not last.variant:
            return False
        prompts = self.evaluation.prompts_of_role("subject")
        scores = NormalizedScores(self.evaluation, [last.variant], prompts)
        anchors = scores.anchors
        if anchors.base_fidelity is None or anchors.reference_fidelity is None:
            return False
        span = anchors.reference_fidelity - anchors.base_fidelity
        if span <= 0 or scores.fidelity[0] >= NEAR_TRUE_IMAGES:
            return False
        earlier = self._before(last)
        rise = earlier and self.evaluation.paired_difference(
            earlier.variant, last.variant, self.evaluation.fidelity_metric, prompts
        )
        return selection.still_rising or bool(rise and rise.ci_low > 0 and rise.mean >= MIN_RISE * span)

    def _before(self, last: VariantQuality) -> VariantQuality | None:
        """Return the latest checkpoint of the same strength with at most 80 % of the steps."""
        step, strength = last.variant.step or 0, last.variant.strength
        own = [c for c in self.candidates if c.variant.strength == strength]
        own = [c for c in own if (c.variant.step or 0) <= 0.8 * step]
        return max(own, key=lambda c: c.variant.step or 0, default=None)

    def fidelity_gain(self, candidate: VariantQuality) -> Interval | None:
        """Return the similarity to these references minus the base model's, in cosine, over prompts.

        It says whether anything was learned, even where the references are too few for fidelity's scale.
        """
        evaluation, base = self.evaluation, self.evaluation.base
        prompts = evaluation.prompts_of_role("subject")
        if base is None:
            return None
        return evaluation.paired_difference(base, candidate.variant, evaluation.fidelity_metric, prompts)

    def lowest_fidelity(self, candidate: VariantQuality) -> float | None:
        """Return the lower end of fidelity's interval, also where that is too wide for a figure."""
        prompts = self.evaluation.prompts_of_role("subject")
        return NormalizedScores(self.evaluation, [candidate.variant], prompts).lowest("fidelity", 0)

    def with_alarm(self, *names: AlarmName) -> list[VariantQuality]:
        """Return the variants that are beyond the limit of one of the alarms."""
        return [candidate for candidate in self.candidates if find_alarm(candidate, *names)]


def strength_of(candidate: VariantQuality) -> float:
    """Return the strength of a variant, 1 if it has none."""
    return 1.0 if candidate.variant.strength is None else candidate.variant.strength


def find_alarm(candidate: VariantQuality | None, *names: AlarmName) -> Alarm | None:
    """Return the first alarm beyond its limit, of these names or of any; None if there is none."""
    alarms = candidate.alarms if candidate else []
    return next((a for a in alarms if a.level == "alarm" and (a.name in names or not names)), None)


def as_sentence(message: str) -> str:
    """Return a message as a sentence."""
    return f"{message[:1].upper()}{message[1:]}."


def all_damaged(case: Case) -> bool:
    """Return True if every variant is beyond the limit of an alarm."""
    return bool(case.candidates) and all(find_alarm(candidate) for candidate in case.candidates)
