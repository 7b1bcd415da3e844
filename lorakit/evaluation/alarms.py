"""Alarms: faults of a variant that exceed chance, such as copied images, drift or ignored prompts.

The thresholds are calibrated on the base model's or the training images of the same evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import Interval, bootstrap
from lorakit.data.prompts import Prompt
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.report.number_format import format_percent
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores, column_interval

MIN_DIVERSITY_RATIO = 0.7  # of the base model's diversity
SSCD_COPY_THRESHOLD = 0.5  # similarity from which a pair counts as a copy (Pizzi et al., arXiv:2202.10261)
NO_EFFECT_THRESHOLD = 0.05  # drift, as a share of the distance between two seeds of the base model
MIN_PROMPT_ADHERENCE = 0.7  # of the base model's prompt adherence
MIN_DRIFT_LIMIT_SHARE = 0.2  # of the distance between images of different prompts
MAX_EXAMPLES = 5

AlarmName = Literal["copied_images", "memorization", "prompt_ignored", "low_diversity", "drift", "no_effect"]
Level = Literal["warning", "alarm"]
"""A warning is near the limit, an alarm beyond it: red, and only beyond doubt."""
ADVICE: dict[AlarmName, str] = {
    "copied_images": "train fewer steps, add training images, or use a lower strength",
    "memorization": "train fewer steps, add training images, or use a lower strength",
    "prompt_ignored": "check that each caption belongs to its image, or use a lower learning rate",
    "low_diversity": "train fewer steps or use a lower strength",
    "drift": "use a lower strength, or train with class images or output preservation",
    "no_effect": "train more steps or with a higher learning rate",
}


@dataclass(frozen=True)
class Alarm:
    """A fault of a variant: the measured `value` beyond its `threshold`; `examples` show it best."""

    name: AlarmName
    message: str
    value: Interval | None = None
    threshold: float | None = None
    examples: list[SampleKey] = field(default_factory=list)
    level: Level = "alarm"

    @property
    def title(self) -> str:
        """The name as a heading: `Copied images`."""
        return self.name.replace("_", " ").capitalize()

    @property
    def advice(self) -> str:
        """Steps that usually remove the fault."""
        return ADVICE[self.name]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `lorakit eval pick --json` and scores.json."""
        return {
            "name": self.name,
            "level": self.level,
            "message": self.message,
            "value": self.value.to_json() if self.value else None,
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class DriftLimit:
    """The drift that is tolerated, as 1 - cosine, and the source of the number."""

    value: float
    source: str


def drift_limit(evaluation: Evaluation, requested: float | None) -> DriftLimit | None:
    """Return the requested drift limit, or the change by another seed of the base model.

    The second is measured on the prompts without the subject. Prompts that leave little freedom to a seed
    would make it almost zero, so it is at least a fifth of the distance between different prompts.
    """
    if requested is not None:
        return DriftLimit(requested, "as requested")
    base, prompts = evaluation.base, evaluation.prompts_of_role("class", "unrelated")
    if base is None or not prompts:
        return None
    seed_distance = column_interval(evaluation.prompt_means(base, "diversity", prompts))
    prompt_distance = base.set_metrics.get("prompt_distance")
    limits = []
    if seed_distance:
        limits.append(DriftLimit(seed_distance.mean, "the change by another seed of the base model"))
    if prompt_distance is not None:
        share = MIN_DRIFT_LIMIT_SHARE * prompt_distance
        limits.append(DriftLimit(share, "a fifth of the distance between different prompts"))
    return max(limits, key=lambda limit: (limit.value, limit.source)) if limits else None


def find_alarms(
    evaluation: Evaluation, variant: VariantScores, max_drift: DriftLimit | None = None
) -> list[Alarm]:
    """Return all alarms of a variant, the most serious first."""
    checks: list[Callable[[], Alarm | None]] = [
        lambda: _copied_images(evaluation, variant),
        lambda: _copy_detector_hits(evaluation, variant),
        lambda: _memorization(evaluation, variant),
        lambda: _prompt_ignored(evaluation, variant),
        lambda: _low_diversity(evaluation, variant),
        lambda: _drift(evaluation, variant, max_drift),
        lambda: _no_effect(evaluation, variant),
    ]
    return [alarm for check in checks if (alarm := check())]


def _copied_images(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """More images close to a training image than chance explains, and more than for the base model."""
    name, prompts = "nearest_train_similarity", evaluation.prompts_of_role("subject")
    threshold = evaluation.copy_threshold
    if threshold is None or name not in variant.scores:
        return None
    shares = _shares_above(variant, name, prompts, threshold.similarity)
    copied_share = column_interval(shares)
    if copied_share is None or not copied_share.ci_low > threshold.expected_rate:
        return None
    if evaluation.base:
        base_shares = _shares_above(evaluation.base, name, prompts, threshold.similarity)
        increase = column_interval(shares - base_shares)
        if increase is None or not increase.ci_low > 0:
            return None
    message = (
        f"{format_percent(copied_share.mean)} of the images are more similar to a training image than the "
        f"training images are to each other; {format_percent(threshold.expected_rate)} are expected by chance"
    )
    examples = _worst_examples(variant, name, prompts, threshold.similarity)
    return Alarm("copied_images", message, copied_share, threshold.expected_rate, examples)


def _copy_detector_hits(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    examples = _worst_examples(variant, "sscd", evaluation.prompts, SSCD_COPY_THRESHOLD)
    if not examples:
        return None
    count = sum(value > SSCD_COPY_THRESHOLD for value in variant.scores["sscd"].values())
    message = f"the copy detector (SSCD) scores {count} images above {SSCD_COPY_THRESHOLD:g}"
    return Alarm("copied_images", message, None, SSCD_COPY_THRESHOLD, examples)


def _memorization(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Images of new scenes resemble the references more than the references resemble each other."""
    prompts = evaluation.prompts_of_role("subject")
    fidelity = NormalizedScores(evaluation, [variant], prompts).interval("fidelity", 0)
    if fidelity is None or not fidelity.ci_low > 1:
        return None
    message = (
        "images of new scenes are more similar to the reference images than these are to each other "
        f"(fidelity {format_percent(fidelity.mean)})"
    )
    examples = _worst_examples(variant, "nearest_train_similarity", prompts, 0.0)
    return Alarm("memorization", message, fidelity, 1.0, examples)


def _low_diversity(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """The seeds of a prompt resemble each other more than the base model's."""
    ratio = diversity_ratio(evaluation, variant, evaluation.prompts)
    if ratio is None or not ratio.mean < MIN_DIVERSITY_RATIO:
        return None
    message = f"the seeds of a prompt differ only {format_percent(ratio.mean)} as much as for the base model"
    return Alarm("low_diversity", message, ratio, MIN_DIVERSITY_RATIO)


def diversity_ratio(
    evaluation: Evaluation, variant: VariantScores, prompts: Sequence[Prompt]
) -> Interval | None:
    """Return the diversity of a variant over that of the base model, both as means over prompts."""
    base = evaluation.base
    if base is None or not prompts:
        return None
    table = np.stack([evaluation.prompt_means(one, "diversity", prompts) for one in (variant, base)], 1)
    table = table[np.isfinite(table).all(1)]
    if not len(table) or not table[:, 1].mean() > 0:
        return None
    return bootstrap(table, lambda means: means[..., 0] / means[..., 1])


def _drift(evaluation: Evaluation, variant: VariantScores, max_drift: DriftLimit | None) -> Alarm | None:
    """Prompts without the subject change too much; the interval's upper end counts, since it is a limit."""
    prompts = evaluation.prompts_of_role("class", "unrelated")
    drift = evaluation.interval(variant, "drift", prompts) if prompts else None
    if max_drift is None or drift is None or not drift.ci_high > max_drift.value:
        return None
    message = (
        f"prompts without the subject change by {100 * drift.mean:.1f} (up to {100 * drift.ci_high:.1f}), "
        f"more than the limit of {100 * max_drift.value:.1f} ({max_drift.source})"
    )
    return Alarm("drift", message, drift, max_drift.value, _worst_examples(variant, "drift", prompts, 0.0))


def _no_effect(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Images of the subject are almost those of the base model."""
    base, prompts = evaluation.base, evaluation.prompts_of_role("subject") or evaluation.prompts
    if base is None or "drift" not in variant.scores:
        return None
    seed_distance = column_interval(evaluation.prompt_means(base, "diversity", prompts))
    unit = seed_distance.mean if seed_distance and seed_distance.mean > 0 else 1.0
    relative_drift = column_interval(evaluation.prompt_means(variant, "drift", prompts) / unit)
    if relative_drift is None:
        return None
    upper = relative_drift.mean if np.isnan(relative_drift.ci_high) else relative_drift.ci_high
    if not upper < NO_EFFECT_THRESHOLD:
        return None
    message = "the adapter does nothing: its images are the base model's"
    return Alarm("no_effect", message, relative_drift, NO_EFFECT_THRESHOLD)


def _prompt_ignored(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Images of the subject match their prompts much worse than the base model's, beyond chance."""
    prompts = evaluation.prompts_of_role("subject")
    adherence = NormalizedScores(evaluation, [variant], prompts).interval("prompt_adherence", 0)
    if adherence is None or not (adherence.mean < MIN_PROMPT_ADHERENCE and adherence.ci_high < 1):
        return None
    message = (
        f"images match their prompts only {format_percent(max(adherence.mean, 0))} as well as the base "
        "model's (0 % is the match with shuffled prompts)"
    )
    return Alarm("prompt_ignored", message, adherence, MIN_PROMPT_ADHERENCE)


def _shares_above(
    variant: VariantScores, name: str, prompts: Sequence[Prompt], threshold: float
) -> NDArray[np.float64]:
    """Return for each prompt (G,) the share of its seeds above a threshold."""
    above = {key: float(score > threshold) for key, score in variant.scores[name].items()}
    shares = []
    for prompt in prompts:
        keys = [SampleKey(prompt.id, seed) for seed in prompt.seeds]
        shares.append(float(np.mean([above[key] for key in keys if key in above] or [math.nan])))
    return np.array(shares)


def _worst_examples(
    variant: VariantScores, name: str, prompts: Sequence[Prompt], threshold: float
) -> list[SampleKey]:
    """Return the images that are furthest above a threshold, one for each prompt."""
    worst: dict[str, tuple[float, SampleKey]] = {}
    ids = {prompt.id for prompt in prompts}
    for key, value in variant.scores.get(name, {}).items():
        if value > threshold and key.prompt_id in ids:
            worst[key.prompt_id] = max(worst.get(key.prompt_id, (value, key)), (value, key))
    return [key for _, key in sorted(worst.values(), reverse=True)[:MAX_EXAMPLES]]
