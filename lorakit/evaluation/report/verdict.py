"""What an evaluation says, in a sentence, and what the sentence leaves out."""

from __future__ import annotations

from lorakit.core.statistics import MIN_PROMPTS, Interval
from lorakit.data.prompts import Role
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
    "unrelated": "other prompts",
}


def selection_headline(evaluation: Evaluation, pick: Selection | None) -> tuple[str, bool | None]:
    """The verdict in one sentence, and whether it is good news."""
    if pick is None:
        return _scores_text(evaluation), None
    if pick.arm is None:
        alarmed = f" {_alarm_text(pick)}." if any(standing.alarms for standing in pick.standings) else ""
        return f"No checkpoint to take: {pick.why}.{alarmed}", False
    told = []
    if pick.fidelity:
        told.append(f"{format_percent_interval(pick.fidelity)} of the way from the base to the references")
    if pick.adherence:
        told.append(f"prompts followed {format_percent_interval(pick.adherence)} as well as by the base")
    sure = pick.fidelity is None or pick.fidelity.low > 0
    text = f"Take {pick.arm.name}: {', '.join(told)}."
    return (text, True) if sure else (f"{text} That it learnt anything is not beyond chance.", None)


def _scores_text(evaluation: Evaluation) -> str:
    parts = []
    for arm in evaluation.arms:
        found = evaluation.interval(arm, "clip_t", evaluation.prompts)
        parts.append(f"{arm.name}: CLIP-T {format_interval(found, metric_spec('clip_t'))}")
    return f"{'; '.join(parts)} over {format_count(len(evaluation.prompts), 'prompt')}."


def selection_remarks(evaluation: Evaluation, pick: Selection | None) -> list[str]:
    """What the verdict leaves out: ties, gains, choices, alarms, and too few prompts."""
    parts = []
    base = evaluation.base
    if pick and pick.arm and base:
        parts += _reporting_half_text(pick)
        parts += [_gain(evaluation, base, pick.arm, role) for role in ROLE_LABELS if evaluation.of_role(role)]
        parts += _choice_accuracy_text(evaluation, base, pick.arm)
    if pick:
        alarmed = [standing for standing in pick.standings if standing.alarms]
        if alarmed and pick.arm:
            parts.append(f"{_alarm_text(pick)}.")
        parts += _too_strong_text(pick)
    if pick and pick.indicative:
        subject = format_count(len(evaluation.of_role("subject")), "prompt")
        parts.append(f"Indicative: {subject} of the subject, fewer than {MIN_PROMPTS}.")
    return parts + evaluation.notes


def _reporting_half_text(pick: Selection) -> list[str]:
    """By which prompts the figures are told, and which arms these cannot tell apart."""
    ties = f"cannot tell it from {join_names(pick.runners_up)}" if pick.runners_up else ""
    if not pick.held_back:
        few = "Too few prompts to hold half of them back: the figures are those of the choice."
        return [few, *([f"They {ties}."] if ties else [])]
    told = format_count(pick.quality.units, "prompt") if pick.quality else "prompts"
    text = f"Half of the prompts chose; the figures are told by the other {told}"
    return [f"{text}, which {ties}." if ties else f"{text}."]


def _gain(evaluation: Evaluation, base: VariantScores, arm: VariantScores, role: Role) -> str:
    prompts, shown = evaluation.of_role(role), metric_spec("clip_t")
    before, after = (evaluation.interval(one, "clip_t", prompts) for one in (base, arm))
    gain = evaluation.gain(base, arm, "clip_t", prompts)
    means = " → ".join(format_interval(one, shown).partition(" [")[0] for one in (before, after))
    return f"CLIP-T on {ROLE_LABELS[role]}: {means}, {format_interval(gain, shown, signed=True)}{_significance_text(gain)}."


def _significance_text(gain: Interval | None) -> str:
    if gain is None or not (gain.low > 0 or gain.high < 0):
        return ", no difference beyond chance"
    return ", better beyond chance" if gain.low > 0 else ", worse beyond chance"


def _choice_accuracy_text(evaluation: Evaluation, base: VariantScores, arm: VariantScores) -> list[str]:
    prompts, shown = evaluation.of_role("subject"), metric_spec("right")
    after = evaluation.interval(arm, "right", prompts)
    if after is None:
        return []
    before = evaluation.interval(base, "right", prompts)
    return [
        f"CLIP picks the right description for {format_interval(after, shown)} of the pictures, "
        f"{format_interval(before, shown)} before."
    ]


def _alarm_text(pick: Selection) -> str:
    """Which arms have which alarms, by kind; of a single arm what they say."""
    if len(pick.standings) == 1:
        return "; ".join(alarm.text[:1].upper() + alarm.text[1:] for alarm in pick.standings[0].alarms)
    kinds: dict[str, list[str]] = {}
    for standing in pick.standings:
        for alarm in standing.alarms:
            kinds.setdefault(alarm.text.partition(":")[0], []).append(standing.arm.name)
    told = [format_name_range(names) for names in kinds.values()]
    return "; ".join(
        f"{what[:1].upper() + what[1:]}: {where}" for what, where in zip(kinds, told, strict=True)
    )


def _too_strong_text(pick: Selection) -> list[str]:
    """That the adapter is too strong as it stands, when the pick is the same step at a lower strength."""
    if pick.arm is None or pick.arm.strength is None or pick.arm.strength >= 1:
        return []
    whole = [s for s in pick.standings if s.arm.step == pick.arm.step and s.arm.strength == 1]
    return [f"At full strength the adapter is too strong: take it at {pick.arm.strength:g}."] if whole else []


def comparison_summary(
    evaluation: Evaluation, before: VariantScores, after: VariantScores
) -> tuple[str, bool | None]:
    """The verdict of a comparison of two arms: the metrics that differ beyond chance."""
    better: list[str] = []
    worse: list[str] = []
    for name in evaluation.measured():
        shown = metric_spec(name)
        gain = evaluation.gain(before, after, name, evaluation.prompts)
        if gain and shown.better and (gain.low > 0 or gain.high < 0):
            good = (gain.mean > 0) == (shown.better > 0)
            (better if good else worse).append(f"{shown.title} {format_interval(gain, shown, signed=True)}")
    parts = [f"better in {join_names(better)}"] if better else []
    parts += [f"worse in {join_names(worse)}"] if worse else []
    if not parts:
        return f"{after.name} and {before.name} cannot be told apart.", None
    only = None if better and worse else bool(better)
    return f"{after.name} is {' and '.join(parts)} than {before.name}.", only
