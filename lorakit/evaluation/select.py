"""Checkpoint selection, and the certainty of the choice.

The best of many noisy scores overstates itself, so half of the prompts select and the other half report. If
checkpoints cannot be distinguished, the earliest is selected, because it has had the least time to overfit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lorakit.core import rng
from lorakit.core.statistics import MIN_PROMPTS, Interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm, DriftLimit
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.score_table import Evaluation, VariantScores

MIN_PROMPTS_TO_SPLIT = 8  # with fewer prompts of the subject all of them select and report


@dataclass(frozen=True)
class VariantQuality:
    """Scores and alarms of one variant on all prompts of the subject."""

    variant: VariantScores
    fidelity: Interval | None
    prompt_adherence: Interval | None
    alarms: list[Alarm]


@dataclass(frozen=True)
class Selection:
    """The selected variant, or None if all have alarms or nothing can be measured; `reason` explains it.

    `quality`, `fidelity`, `prompt_adherence` and `tied_with` are measured on the prompts that did not
    select.
    """

    variant: VariantScores | None
    reason: str
    candidates: list[VariantQuality]
    max_drift: DriftLimit | None = None
    quality: Interval | None = None
    fidelity: Interval | None = None
    prompt_adherence: Interval | None = None
    tied_with: list[str] = field(default_factory=list)
    """Names of variants whose quality cannot be distinguished from that of the selected one."""
    held_out_prompts: bool = True
    """True if other prompts report than selected."""
    few_prompts: bool = False
    best: VariantScores | None = None
    """The best by quality, whatever its alarms."""
    despite_alarms: bool = False
    """True if the recommended variant itself has an alarm, because all have one: it is the least bad."""
    still_rising: bool = False
    """True if quality still rises at the last checkpoint, beyond chance."""

    @property
    def without_alarms(self) -> list[VariantScores]:
        """The variants without an alarm."""
        return [candidate.variant for candidate in self.candidates if not candidate.alarms]

    def to_json(self) -> dict[str, object]:
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
            "tied_with": self.tied_with,
            "few_prompts": self.few_prompts,
            "held_out_prompts": self.held_out_prompts,
            "max_drift": vars(self.max_drift) if self.max_drift else None,
            **{name: value.to_json() if value else None for name, value in intervals.items()},
            "alarms": {
                candidate.variant.name: [alarm.to_json() for alarm in candidate.alarms]
                for candidate in self.candidates
                if candidate.alarms
            },
        }


@dataclass(frozen=True)
class PromptSplit:
    """Prompts that select the checkpoint, and prompts that report its quality."""

    selecting: list[Prompt]
    reporting: list[Prompt]


def split_prompts(prompts: list[Prompt]) -> PromptSplit:
    """Split the prompts in halves with as many of each kind, by keyed randomness; few prompts do both."""
    if len(prompts) < MIN_PROMPTS_TO_SPLIT:
        return PromptSplit(prompts, prompts)
    order = sorted(prompts, key=lambda prompt: (prompt.kind, rng.derive_seed(0, "half", prompt.id)))
    return PromptSplit(order[::2], order[1::2])


def select_checkpoint(evaluation: Evaluation, max_drift: float | None = None) -> Selection:
    """Drop variants with alarms, find the best on half of the prompts, select the earliest as good as it.

    As good means within one standard error of the paired difference. `max_drift` (1 - cosine) overrides the
    limit in the evaluation's settings.
    """
    max_drift = evaluation.settings.get("max_drift") if max_drift is None else max_drift
    subject_prompts = evaluation.prompts_of_role("subject")
    variants = evaluation.adapter_variants
    limit = alarms.drift_limit(evaluation, max_drift)
    all_scores = NormalizedScores(evaluation, variants, subject_prompts)
    candidates = [
        VariantQuality(
            variant,
            all_scores.interval("fidelity", index),
            all_scores.interval("prompt_adherence", index),
            alarms.find_alarms(evaluation, variant, limit),
        )
        for index, variant in enumerate(variants)
    ]
    few_prompts = len(subject_prompts) < MIN_PROMPTS
    remaining = [candidate.variant for candidate in candidates if not candidate.alarms]
    if reason := _why_no_selection(evaluation, all_scores, subject_prompts, remaining):
        return Selection(None, reason, candidates, limit, few_prompts=few_prompts)
    split = split_prompts(subject_prompts)
    selected = _earliest_within_one_standard_error(NormalizedScores(evaluation, remaining, split.selecting))
    scores = NormalizedScores(evaluation, remaining, split.reporting)
    others = [index for index in range(len(remaining)) if index != selected]
    ties = [remaining[i].name for i in others if _is_tie(scores.quality_difference(selected, i))]
    return Selection(
        remaining[selected],
        "the earliest without an alarm within one standard error of the best",
        candidates,
        limit,
        scores.interval("quality", selected),
        scores.interval("fidelity", selected),
        scores.interval("prompt_adherence", selected),
        ties,
        held_out_prompts=split.selecting is not split.reporting,
        few_prompts=few_prompts,
    )


def _why_no_selection(
    evaluation: Evaluation,
    scores: NormalizedScores,
    subject_prompts: list[Prompt],
    remaining: list[VariantScores],
) -> str | None:
    """Return the reason why no variant can be selected, or None."""
    if not evaluation.adapter_variants or evaluation.base is None:
        return "there are no images of the base model to compare with"
    if not subject_prompts:
        return "no prompt is about the subject"
    if not (scores.anchors.has_fidelity or scores.anchors.has_prompt_adherence):
        return (
            "neither fidelity nor prompt adherence can be measured: reference images are missing or score "
            "like the base model's, and the base model does not follow the prompts"
        )
    return None if remaining else "every variant has an alarm"


def _earliest_within_one_standard_error(scores: NormalizedScores) -> int:
    """Return the index of the first variant at most one standard error worse than the best."""
    estimate = scores.quality_estimate()
    best = int(estimate.point.argmax())
    if len(scores.prompt_means) < 2:
        return best
    errors = (estimate.resamples[:, [best]] - estimate.resamples).std(0)
    return int(np.flatnonzero(estimate.point[best] - estimate.point <= errors)[0])


def _is_tie(difference: Interval) -> bool:
    return not (difference.ci_low > 0 or difference.ci_high < 0)
