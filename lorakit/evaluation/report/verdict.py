"""The verdict of an evaluation in a few sentences, and notes with the rest."""

from __future__ import annotations

from lorakit.core.statistics import MIN_PROMPTS, Interval
from lorakit.data.prompts import Role
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.comparison import FAMILY_LEVEL, metric_differences
from lorakit.evaluation.diagnosis import Verdict, diagnose
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report.judge_texts import question_notes, win_rate_notes
from lorakit.evaluation.report.number_format import (
    format_count,
    format_interval,
    format_name_range,
    join_names,
)
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import FAMILY_LEVEL as TIE_LEVEL
from lorakit.evaluation.select import Selection

ROLE_LABELS: dict[Role, str] = {
    "subject": "prompts of the subject",
    "class": "prompts of its class",
    "unrelated": "unrelated prompts",
}
_VOTE_TEXTS = {
    None: "`lorakit eval vote RUN` lets people decide",
    True: "people prefer it in a blind vote",
    False: "people have no clear preference in a blind vote",
}


def selection_headline(evaluation: Evaluation, selection: Selection | None) -> Verdict:
    """Return the verdict on a run; without anything to select from, the scores of all variants."""
    if selection is None:
        return Verdict(_scores_text(evaluation), None)
    return diagnose(evaluation, selection)


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
        notes += _certainty_text(selection)
        roles = [role for role in ROLE_LABELS if evaluation.prompts_of_role(role)]
        notes += [_clip_t_change_text(evaluation, base, selection.variant, role) for role in roles]
        notes += _clip_accuracy_text(evaluation, base, selection.variant)
        notes += question_notes(evaluation, selection.variant)
        notes += win_rate_notes(evaluation, selection.variant, ROLE_LABELS)
    if selection and (best := selection.variant or selection.best):
        notes += [comparison_summary(evaluation, best, guest).text for guest in evaluation.guests]
    if selection and selection.variant and _has_alarms(selection):
        notes.append(f"{_alarms_text(selection)}.")
    if selection and selection.few_prompts:
        count = format_count(len(evaluation.prompts_of_role("subject")), "prompt")
        notes.append(f"Indicative only: {count} of the subject, fewer than {MIN_PROMPTS}.")
    return notes + evaluation.notes


def _has_alarms(selection: Selection) -> bool:
    return any(candidate.alarms for candidate in selection.candidates)


def _certainty_text(selection: Selection) -> list[str]:
    """Say which variants cannot be distinguished from the recommended one, and how it was measured."""
    notes = []
    if selection.tied_with:
        level = f"{100 * TIE_LEVEL:.0f} %"
        ties = join_names(selection.tied_with)
        people = _VOTE_TEXTS[selection.preferred_by_people]
        notes.append(
            f"By the scores it cannot be distinguished from {ties} (at {level} for all checkpoints "
            f"together); {people}."
        )
    if selection.num_folds:
        notes.append(
            "All prompts select; the numbers are those of the checkpoint that the other prompts select, so "
            "that the choice of the best does not flatter them."
        )
    return notes


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
    if difference is None or not difference.excludes_zero:
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


def comparison_summary(evaluation: Evaluation, first: VariantScores, second: VariantScores) -> Verdict:
    """Say in one sentence in which metrics the second variant differs from the first beyond chance."""
    better: list[str] = []
    worse: list[str] = []
    differences = metric_differences(evaluation, first, second, evaluation.prompts)
    for difference in differences:
        metric = metric_spec(difference.name)
        if difference.is_better is not None:
            text = f"{metric.title} {format_interval(difference.interval, metric, signed=True)}"
            (better if difference.is_better else worse).append(text)
    parts = [f"better in {join_names(better)}"] if better else []
    parts += [f"worse in {join_names(worse)}"] if worse else []
    count = sum(bool(metric_spec(difference.name).direction) for difference in differences)
    level = f"{100 * FAMILY_LEVEL:.0f} %"
    family = f" (beyond chance at {level} for all {count} metrics together)" if count > 1 else ""
    if not parts:
        return Verdict(f"{second.name} and {first.name} cannot be distinguished{family}.", None)
    good = None if better and worse else bool(better)
    return Verdict(f"{second.name} is {' and '.join(parts)} than {first.name}{family}.", good)
