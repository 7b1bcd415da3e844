"""The verdict of an evaluation in one sentence, and notes with the rest."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.core.statistics import MIN_PROMPTS, Interval
from lorakit.data.prompts import Role
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.report.number_format import (
    format_count,
    format_interval,
    format_name_range,
    format_percent_interval,
    join_names,
)
from lorakit.evaluation.score_table import Evaluation, VariantScores, metric_spec
from lorakit.evaluation.select import Selection

ROLE_LABELS: dict[Role, str] = {
    "subject": "prompts of the subject",
    "class": "prompts of its class",
    "unrelated": "unrelated prompts",
}


@dataclass(frozen=True)
class Verdict:
    """One sentence; `good` is True or False if the news is good or bad, else None."""

    text: str
    good: bool | None


def selection_headline(evaluation: Evaluation, selection: Selection | None) -> Verdict:
    """Say in one sentence which checkpoint to use and how good it is, or why none is recommended."""
    if selection is None:
        return Verdict(_scores_text(evaluation), None)
    if selection.variant is None:
        alarms = f" {_alarms_text(selection)}." if _has_alarms(selection) else ""
        return Verdict(f"No checkpoint is recommended: {selection.reason}.{alarms}", False)
    parts = []
    if selection.fidelity:
        fidelity = format_percent_interval(selection.fidelity)
        parts.append(f"fidelity {fidelity} (0 % is the base model, 100 % the reference images)")
    if selection.prompt_adherence:
        adherence = format_percent_interval(selection.prompt_adherence)
        parts.append(f"prompt adherence {adherence} (100 % is the base model)")
    text = f"Use {selection.variant.name}: {', '.join(parts)}."
    if selection.fidelity is None or selection.fidelity.ci_low > 0:
        return Verdict(text, True)
    return Verdict(f"{text} Fidelity above the base model is not beyond chance.", None)


def _scores_text(evaluation: Evaluation) -> str:
    parts = []
    for variant in evaluation.variants:
        interval = evaluation.interval(variant, "clip_t", evaluation.prompts)
        parts.append(f"{variant.name}: CLIP-T {format_interval(interval, metric_spec('clip_t'))}")
    return f"{'; '.join(parts)} over {format_count(len(evaluation.prompts), 'prompt')}."


def selection_notes(evaluation: Evaluation, selection: Selection | None) -> list[str]:
    """Return sentences about ties, gains, alarms and strength, then the evaluation's own notes."""
    notes = []
    base = evaluation.base
    if selection and selection.variant and base:
        notes += _reporting_prompts_text(selection)
        roles = [role for role in ROLE_LABELS if evaluation.prompts_of_role(role)]
        notes += [_clip_t_change_text(evaluation, base, selection.variant, role) for role in roles]
        notes += _clip_accuracy_text(evaluation, base, selection.variant)
    if selection:
        if selection.variant and _has_alarms(selection):
            notes.append(f"{_alarms_text(selection)}.")
        notes += _too_strong_text(selection)
    if selection and selection.few_prompts:
        count = format_count(len(evaluation.prompts_of_role("subject")), "prompt")
        notes.append(f"Indicative only: {count} of the subject, fewer than {MIN_PROMPTS}.")
    return notes + evaluation.notes


def _has_alarms(selection: Selection) -> bool:
    return any(candidate.alarms for candidate in selection.candidates)


def _reporting_prompts_text(selection: Selection) -> list[str]:
    """Say which prompts the numbers are measured on, and which variants cannot be distinguished on them."""
    ties = ""
    if selection.tied_with:
        ties = f"On these prompts it cannot be distinguished from {join_names(selection.tied_with)}."
    if selection.held_out_prompts:
        count = format_count(selection.quality.num_prompts, "prompt") if selection.quality else "prompts"
        text = f"Half of the prompts selected the checkpoint; the numbers are from the other {count}."
    else:
        text = "There are too few prompts to hold half of them out: the same prompts selected and report."
    return [text, *([ties] if ties else [])]


def _clip_t_change_text(
    evaluation: Evaluation, base: VariantScores, variant: VariantScores, role: Role
) -> str:
    prompts, metric = evaluation.prompts_of_role(role), metric_spec("clip_t")
    intervals = [evaluation.interval(one, "clip_t", prompts) for one in (base, variant)]
    means = " → ".join(format_interval(interval, metric).partition(" [")[0] for interval in intervals)
    difference = evaluation.paired_difference(base, variant, "clip_t", prompts)
    change = f"{format_interval(difference, metric, signed=True)}, {_significance_text(difference)}"
    return f"CLIP-T on {ROLE_LABELS[role]}: {means}, {change}."


def _significance_text(difference: Interval | None) -> str:
    if difference is None or not (difference.ci_low > 0 or difference.ci_high < 0):
        return "no difference beyond chance"
    return "better beyond chance" if difference.ci_low > 0 else "worse beyond chance"


def _clip_accuracy_text(evaluation: Evaluation, base: VariantScores, variant: VariantScores) -> list[str]:
    prompts, metric = evaluation.prompts_of_role("subject"), metric_spec("clip_accuracy")
    after = evaluation.interval(variant, "clip_accuracy", prompts)
    if after is None:
        return []
    before = evaluation.interval(base, "clip_accuracy", prompts)
    return [
        f"CLIP ranks the right text first for {format_interval(after, metric)} of the images; "
        f"for the base model {format_interval(before, metric)}."
    ]


def _alarms_text(selection: Selection) -> str:
    """Say which variants have which alarms; of a single variant the alarms' messages."""
    candidates = selection.candidates
    if len(candidates) == 1:
        return "; ".join(f"{a.title}: {a.message} ({a.advice})" for a in candidates[0].alarms)
    raised: dict[str, list[tuple[str, Alarm]]] = {}
    for candidate in candidates:
        for alarm in candidate.alarms:
            raised.setdefault(alarm.name, []).append((candidate.variant.name, alarm))
    parts = []
    for entries in raised.values():
        alarm = entries[0][1]
        names = list(dict.fromkeys(name for name, _ in entries))
        parts.append(f"{alarm.title}: {format_name_range(names)} ({alarm.advice})")
    return "; ".join(parts)


def _too_strong_text(selection: Selection) -> list[str]:
    """Say that the adapter is too strong if a lower strength of the same step is selected."""
    variant = selection.variant
    if variant is None or variant.strength is None or variant.strength >= 1:
        return []
    others = [candidate.variant for candidate in selection.candidates]
    if not any(other.step == variant.step and other.strength == 1 for other in others):
        return []
    return [f"The adapter is too strong at strength 1: use it at {variant.strength:g}."]


def comparison_summary(evaluation: Evaluation, first: VariantScores, second: VariantScores) -> Verdict:
    """Say in one sentence in which metrics the second variant differs from the first beyond chance."""
    better: list[str] = []
    worse: list[str] = []
    for name in evaluation.metric_names():
        metric = metric_spec(name)
        difference = evaluation.paired_difference(first, second, name, evaluation.prompts)
        if difference and metric.direction and (difference.ci_low > 0 or difference.ci_high < 0):
            is_better = (difference.mean > 0) == (metric.direction > 0)
            text = f"{metric.title} {format_interval(difference, metric, signed=True)}"
            (better if is_better else worse).append(text)
    parts = [f"better in {join_names(better)}"] if better else []
    parts += [f"worse in {join_names(worse)}"] if worse else []
    if not parts:
        return Verdict(f"{second.name} and {first.name} cannot be distinguished.", None)
    good = None if better and worse else bool(better)
    return Verdict(f"{second.name} is {' and '.join(parts)} than {first.name}.", good)
