"""report.html of an evaluation: one file, offline, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit import reports
from lorakit.core.statistics import MIN_PROMPTS
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.report import figures, gallery, verdict
from lorakit.evaluation.report.number_format import format_count, format_name_range
from lorakit.evaluation.score_table import METRICS, Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.reports import Html

PAGE_CSS = """
.page { max-width: 1360px; }
figure text.note, figure text.name { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.pair { align-content: start; }
"""


def evaluation_page(
    evaluation: Evaluation,
    pick: Selection | None,
    root: Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    versions: Mapping[str, str],
    extra: Sequence[Html] = (),
) -> str:
    """The whole document; `metrics` are rows of the run's metrics.jsonl, `extra` further sections."""
    text, good = verdict.selection_headline(evaluation, pick)
    body = [
        reports.summary_banner(text, good),
        *(reports.paragraph(remark) for remark in verdict.selection_remarks(evaluation, pick)),
        *(
            [reports.section("Fidelity and adherence", *parts)]
            if pick and (parts := figures.fidelity_adherence_chart(evaluation, pick))
            else []
        ),
        *_progress(evaluation, pick),
        *_alarms(evaluation, pick, root),
        reports.section("Scores", *_scores(evaluation, pick)),
        reports.section("Pictures", *gallery.sample_grid(evaluation, evaluation.arms, root, pick)),
        *(
            [reports.section("What was done", reports.html_table(["", ""], evaluation.facts))]
            if evaluation.facts
            else []
        ),
        *([reports.section("Training", *reports.training_curves(metrics))] if metrics else []),
        *extra,
        reports.section("Settings and versions", *settings_section(evaluation.settings, versions)),
    ]
    return reports.html_page(evaluation.title, body, style=PAGE_CSS)


def comparison_page(
    evaluation: Evaluation,
    before: VariantScores,
    after: VariantScores,
    root: Path,
    *,
    versions: Mapping[str, str],
) -> str:
    """The document of two arms side by side."""
    text, good = verdict.comparison_summary(evaluation, before, after)
    few = len(evaluation.prompts) < MIN_PROMPTS
    body = [
        reports.summary_banner(text, good),
        reports.paragraph(f"Indicative: {format_count(len(evaluation.prompts), 'prompt')}.")
        if few
        else Html(),
        *(reports.paragraph(note) for note in evaluation.notes),
        reports.section("Differences", figures.differences_table(evaluation, before, after), _note()),
        reports.section("By kind of prompts", figures.gain_by_prompt_kind(evaluation, before, after)),
        reports.section("Pictures", *gallery.sample_grid(evaluation, [before, after], root, None)),
        reports.section("Settings and versions", *settings_section(evaluation.settings, versions)),
    ]
    return reports.html_page(evaluation.title, body, style=PAGE_CSS)


def _progress(evaluation: Evaluation, pick: Selection | None) -> list[Html]:
    parts = figures.metric_charts(evaluation, pick) if pick else []
    note = "Bands are 95 % intervals over prompts (over images for losses); the green line is the pick."
    return [reports.section("As training went on", *parts, reports.paragraph(note))] if parts else []


def _alarms(evaluation: Evaluation, pick: Selection | None, root: Path) -> list[Html]:
    """A card for each kind of alarm: the arms that have it, and the pictures that raised it in the last."""
    raised: dict[str, list[tuple[VariantScores, Alarm]]] = {}
    for standing in pick.standings if pick else []:
        for alarm in standing.alarms:
            raised.setdefault(alarm.kind, []).append((standing.arm, alarm))
    if not raised:
        return []
    note = (
        "An arm with an alarm is not picked. Limits come from this evaluation itself: how alike the training "
        "images are, how much another seed changes the base's pictures."
    )
    cards = [_alarm_card(evaluation, some, root) for some in raised.values()]
    return [reports.section("Alarms", reports.paragraph(note), *cards)]


def _alarm_card(evaluation: Evaluation, raised: Sequence[tuple[VariantScores, Alarm]], root: Path) -> Html:
    told = [f"{arm.name}: {alarm.text.partition(': ')[2] or alarm.text}." for arm, alarm in raised]
    arm, alarm = raised[-1]
    name = alarm.text.partition(":")[0]
    heading = f"{name[:1].upper()}{name[1:]}: {format_name_range([arm.name for arm, _ in raised])}"
    first = [reports.paragraph(told[-1])]
    rest = [
        reports.details(f"{format_count(len(told) - 1, 'earlier arm')}", *map(reports.paragraph, told[:-1]))
    ]
    shown = gallery.alarm_examples(evaluation, arm, alarm, root)
    return reports.card(heading, *first, shown, *(rest if len(told) > 1 else []), good=False)


def _scores(evaluation: Evaluation, pick: Selection | None) -> list[Html]:
    base = evaluation.base
    parts = [figures.variants_table(evaluation, pick)]
    if base and pick and (lead := pick.arm or (evaluation.tuned[-1] if evaluation.tuned else None)):
        parts.append(figures.gain_by_prompt_kind(evaluation, base, lead))
    elif len(evaluation.arms) == 1:
        parts = [figures.scores_by_prompt_kind(evaluation, evaluation.arms[0])]
    return [*parts, _note(), reports.details("What the numbers are", _definitions(evaluation))]


def _note() -> Html:
    return reports.paragraph(
        "Brackets are 95 % intervals of a bootstrap over prompts, each with all its seeds; differences are "
        f"paired by prompt and seed. With fewer than {MIN_PROMPTS} prompts they are indicative only."
    )


def _definitions(evaluation: Evaluation) -> Html:
    names = dict.fromkeys(name.partition("@")[0] for name in evaluation.measured())
    names |= dict.fromkeys(name for arm in evaluation.arms for name in arm.totals if name in METRICS)
    return reports.html_table(["Score", ""], [[METRICS[name].title, METRICS[name].note] for name in names])


def settings_section(used: Mapping[str, Any], versions: Mapping[str, str]) -> list[Html]:
    """What every number depends on, a table for each model that judged."""
    used = dict(sorted(used.items()))  # as they come out of scores.json, so that the page is the same again
    plain = [[name, format_setting(value)] for name, value in used.items() if not isinstance(value, Mapping)]
    parts = [reports.html_table(["", ""], plain)] if plain else []
    for name, value in used.items():
        if not isinstance(value, Mapping):
            continue
        rows = [[key, format_setting(item)] for key, item in sorted(value.items()) if key != "truncated"]
        parts.append(reports.html_table([name[:1].upper() + name[1:], ""], rows))
        if cut := list(value.get("truncated") or []):
            listed = reports.tag("ul", *(reports.tag("li", text) for text in cut))
            told = (
                f"{format_count(len(cut), 'text')} did not fit its context and scored by what they begin with"
            )
            parts.append(reports.details(told, listed))
    parts.append(
        reports.details("Versions", reports.html_table(["Package", "Version"], list(versions.items())))
    )
    return parts


def format_setting(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return "none" if value is None else str(value)
