"""Alarms about what an adapter does beside showing its subject: to prompts, seeds, and its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.core.statistics import Interval, bootstrap
from lorakit.data.prompts import Prompt
from lorakit.evaluation.alarms.alarm import Alarm, FloatArray, Level, grade, score_columns, worst_examples
from lorakit.evaluation.report.number_format import format_percent
from lorakit.evaluation.score_table import Evaluation, VariantScores, column_interval

MIN_DIVERSITY_RATIO = 0.7  # of the base model's diversity, or of that of the references if it is smaller
NO_EFFECT_THRESHOLD = 0.05  # drift, as a share of the distance between two seeds of the base model
MIN_PROMPT_ADHERENCE = 0.7  # of the base model's prompt adherence
MIN_DRIFT_LIMIT_SHARE = 0.2  # of the distance between images of different prompts
ONE_SEED_SHARE = 0.35
"""Distance between two seeds of a prompt as a share of that between prompts, where each prompt has one seed:
.25 and .70 in a run of the embedded base model with four seeds."""
MAX_CLASS_LEAKAGE, SURE_CLASS_LEAKAGE = 0.25, 0.5
"""Share of the distance from the base model's images of the class to the references: a warning above the
first; an alarm if the interval is above the second, because the class then looks more like the subject."""
MIN_CLASS_RANGE = 0.02  # of that distance as cosine; less is noise


@dataclass(frozen=True)
class DriftLimit:
    """The drift that is tolerated, as 1 - cosine, and the source of the number."""

    value: float
    source: str


def drift_limit(evaluation: Evaluation, requested: float | None) -> DriftLimit | None:
    """Return the requested drift limit, or the change by another seed of the base model.

    The second is the mean distance between two seeds, whatever their number, on the prompts without the
    subject. Prompts that leave little freedom to a seed would make it almost zero, so it is at least a fifth
    of the distance between different prompts. With one seed it is estimated from that distance.
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
    elif prompt_distance is not None:
        source = "the usual change by another seed, estimated from the distance between prompts"
        limits.append(DriftLimit(ONE_SEED_SHARE * prompt_distance, source))
    return max(limits, key=lambda limit: (limit.value, limit.source)) if limits else None


def drift(evaluation: Evaluation, variant: VariantScores, max_drift: DriftLimit | None) -> Alarm | None:
    """Prompts without the subject change too much."""
    prompts = evaluation.prompts_of_role("class", "unrelated")
    if max_drift is None or not prompts or "drift" not in variant.scores:
        return None
    table = score_columns(evaluation, [variant], "drift", prompts)
    graded = grade(evaluation, table, lambda means: means[..., 0], max_drift.value)
    if graded is None or graded.level is None:
        return None
    message = (
        f"prompts without the subject change by {100 * graded.value.mean:.1f}, more than the limit of "
        f"{100 * max_drift.value:.1f} ({max_drift.source})"
    )
    examples = worst_examples(variant.scores["drift"], prompts)
    return Alarm("drift", message, graded.value, max_drift.value, examples, graded.level)


def no_effect(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
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


def prompt_ignored(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Images of the subject match their prompts much worse than the base model's."""
    base, prompts = evaluation.base, evaluation.prompts_of_role("subject")
    if base is None or not prompts or "clip_t" not in variant.scores:
        return None
    table = np.concatenate(
        [score_columns(evaluation, [variant, base], name, prompts) for name in ("clip_t", "clip_t_shuffled")],
        1,
    )

    def adherence(means: FloatArray) -> FloatArray:
        share: FloatArray = (means[..., 0] - means[..., 2]) / (means[..., 1] - means[..., 3])
        return share

    known = table[np.isfinite(table).all(1)]
    if not len(known) or not _is_above_zero(known[:, 1] - known[:, 3]):
        return None  # the base model does not follow the prompts either
    graded = grade(evaluation, known, adherence, MIN_PROMPT_ADHERENCE, above=False)
    if graded is None or graded.level is None:
        return None
    message = (
        f"images match their prompts only {format_percent(max(graded.value.mean, 0))} as well as the base "
        "model's (0 % is the match with shuffled prompts)"
    )
    margins = {
        key: variant.scores["clip_t_shuffled"][key] - value
        for key, value in variant.scores["clip_t"].items()
        if key in variant.scores["clip_t_shuffled"]
    }
    examples = worst_examples(margins, prompts)
    return Alarm("prompt_ignored", message, graded.value, MIN_PROMPT_ADHERENCE, examples, level=graded.level)


def _is_above_zero(column: FloatArray) -> bool:
    """Return True if the mean of a column (G,) is above 0 beyond chance."""
    interval = column_interval(column)
    return interval is not None and interval.ci_low > 0


def low_diversity(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """The seeds of a prompt resemble each other more than the base model's.

    Images of one subject resemble each other more than those of a class do: of the subject's prompts no more
    diversity is expected than the references have.
    """
    base, prompts = evaluation.base, evaluation.prompts
    if base is None or not prompts:
        return None
    table = score_columns(evaluation, [variant, base], "diversity", prompts)
    table[:, 1] = np.minimum(table[:, 1], [_reference_diversity(evaluation, prompt) for prompt in prompts])
    known = table[np.isfinite(table).all(1)]
    if not len(known) or not known[:, 1].mean() > 0:
        return None
    graded = grade(evaluation, known, lambda m: m[..., 0] / m[..., 1], MIN_DIVERSITY_RATIO, above=False)
    if graded is None or graded.level is None:
        return None
    message = (
        f"the seeds of a prompt differ only {format_percent(graded.value.mean)} as much as for the base model"
    )
    sameness = {prompt.id: -value for prompt, value in zip(prompts, table[:, 0], strict=True)}
    scores = {key: sameness[key.prompt_id] for key in variant.files if np.isfinite(sameness[key.prompt_id])}
    examples = worst_examples(scores, prompts)
    return Alarm("low_diversity", message, graded.value, MIN_DIVERSITY_RATIO, examples, graded.level)


def _reference_diversity(evaluation: Evaluation, prompt: Prompt) -> float:
    """Return 1 - mean cosine between references of a prompt's subject; infinite for other prompts."""
    if evaluation.references is None or prompt.role(evaluation.triggers) != "subject":
        return float("inf")
    ceiling = evaluation.references.ceiling(evaluation.prompt_trigger(prompt))
    return 1 - ceiling if np.isfinite(ceiling) else float("inf")


def diversity_ratio(
    evaluation: Evaluation, variant: VariantScores, prompts: Sequence[Prompt]
) -> Interval | None:
    """Return the diversity of a variant over that of the base model, both as means over prompts."""
    base = evaluation.base
    if base is None or not prompts:
        return None
    table = score_columns(evaluation, [variant, base], "diversity", prompts)
    table = table[np.isfinite(table).all(1)]
    if not len(table) or not table[:, 1].mean() > 0:
        return None
    return bootstrap(table, lambda means: means[..., 0] / means[..., 1])


def class_leakage(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Prompts of the class, without the trigger word, show the subject."""
    base, table, prompts = evaluation.base, evaluation.references, evaluation.prompts_of_role("class")
    if base is None or table is None or not prompts or not variant.reference_similarity:
        return None
    columns = np.stack([_similarity(evaluation, one, prompts) for one in (variant, base)], 1)
    ceilings = np.array([table.ceiling(evaluation.prompt_trigger(prompt)) for prompt in prompts])
    columns = np.column_stack([columns, ceilings])
    known = columns[np.isfinite(columns).all(1)]
    if not len(known) or not (known[:, 2] - known[:, 1]).mean() > MIN_CLASS_RANGE:
        return None

    def leakage(means: FloatArray) -> FloatArray:
        share: FloatArray = (means[..., 0] - means[..., 1]) / (means[..., 2] - means[..., 1])
        return share

    graded = grade(evaluation, known, leakage, MAX_CLASS_LEAKAGE)
    firm = grade(evaluation, known, leakage, SURE_CLASS_LEAKAGE)
    if graded is None or firm is None or graded.level is None:
        return None
    level: Level = "alarm" if firm.level == "alarm" else "warning"
    limit = SURE_CLASS_LEAKAGE if level == "alarm" else MAX_CLASS_LEAKAGE
    message = (
        "prompts of the class without the trigger word show the subject: similarity to the references rises "
        f"by {format_percent(graded.value.mean)} of the difference between true images and the base model's"
    )
    scores = {key: float(np.mean(row)) for key, row in variant.reference_similarity.items()}
    examples = worst_examples(scores, prompts)
    return Alarm("class_leakage", message, graded.value, limit, examples, level)


def _similarity(evaluation: Evaluation, variant: VariantScores, prompts: Sequence[Prompt]) -> FloatArray:
    """Return the mean similarity (G,) of each prompt's images to the references that fidelity uses."""
    rows = evaluation.reference_means(variant, prompts)
    units = [evaluation.prompt_units(prompt) for prompt in prompts]
    return np.array([row[own].mean() if own else np.nan for row, own in zip(rows, units, strict=True)])
