"""report.html of an evaluation: one file that works offline, with the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit import reports
from lorakit.core.statistics import MIN_PROMPTS
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.report import figures, gallery, verdict
from lorakit.evaluation.report.number_format import NO_VALUE, format_count, format_name_range
from lorakit.evaluation.score_table import METRICS, Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.reports import Html

PAGE_CSS = """
.page { max-width: 1360px; }
figure text.note, figure text.name { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.pair { align-content: start; }
"""
_TRUNCATED_TEXTS = "truncated_texts"  # in a CLIP model's settings


def evaluation_page(
    evaluation: Evaluation,
    selection: Selection | None,
    root: Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    versions: Mapping[str, str],
    extra: Sequence[Html] = (),
) -> str:
    """Return the whole document; `metrics` are rows of the run's metrics.jsonl, `extra` further sections."""
    headline = verdict.selection_headline(evaluation, selection)
    notes = verdict.selection_notes(evaluation, selection)
    body = [reports.summary_banner(headline.text, headline.good), *map(reports.paragraph, notes)]
    if selection and (chart := figures.fidelity_adherence_chart(evaluation, selection)):
        body.append(reports.section("Fidelity and prompt adherence", *chart))
    body += _charts_section(evaluation, selection)
    body += _alarms_section(evaluation, selection, root)
    body.append(reports.section("Scores", *_score_tables(evaluation, selection)))
    grid = gallery.sample_grid(evaluation, evaluation.variants, root, selection)
    body.append(reports.section("Images", *grid))
    if evaluation.details:
        body.append(reports.section("Run", reports.html_table(["", ""], evaluation.details)))
    if metrics:
        body.append(reports.section("Training", *reports.training_curves(metrics)))
    body += extra
    body.append(reports.section("Settings and versions", *settings_section(evaluation.settings, versions)))
    return reports.html_page(evaluation.title, body, style=PAGE_CSS)


def comparison_page(
    evaluation: Evaluation,
    first: VariantScores,
    second: VariantScores,
    root: Path,
    *,
    versions: Mapping[str, str],
) -> str:
    """Return the document of two variants side by side."""
    summary = verdict.comparison_summary(evaluation, first, second)
    body = [reports.summary_banner(summary.text, summary.good)]
    if len(evaluation.prompts) < MIN_PROMPTS:
        count = format_count(len(evaluation.prompts), "prompt")
        body.append(reports.paragraph(f"Indicative only: {count}, fewer than {MIN_PROMPTS}."))
    grid = gallery.sample_grid(evaluation, [first, second], root, None)
    body += [
        *(reports.paragraph(note) for note in evaluation.notes),
        reports.section(
            "Differences", figures.differences_table(evaluation, first, second), _interval_note()
        ),
        reports.section("By kind of prompts", figures.gain_by_prompt_kind(evaluation, first, second)),
        reports.section("Images", *grid),
        reports.section("Settings and versions", *settings_section(evaluation.settings, versions)),
    ]
    return reports.html_page(evaluation.title, body, style=PAGE_CSS)


def _charts_section(evaluation: Evaluation, selection: Selection | None) -> list[Html]:
    charts = figures.metric_charts(evaluation, selection) if selection else []
    note = (
        "Bands are 95 % intervals over prompts (over images for losses); the green line marks the selected "
        "checkpoint."
    )
    return [reports.section("Scores over training", *charts, reports.paragraph(note))] if charts else []


def _alarms_section(evaluation: Evaluation, selection: Selection | None, root: Path) -> list[Html]:
    """A card for each kind of alarm, with the variants that have it and the images that show it best."""
    raised: dict[str, list[tuple[VariantScores, Alarm]]] = {}
    for candidate in selection.candidates if selection else []:
        for alarm in candidate.alarms:
            raised.setdefault(alarm.name, []).append((candidate.variant, alarm))
    if not raised:
        return []
    note = (
        "A variant with an alarm is not selected. The thresholds are measured in this evaluation: the "
        "similarity of the training images to each other, and the change by another seed of the base model."
    )
    cards = [_alarm_card(evaluation, entries, root) for entries in raised.values()]
    return [reports.section("Alarms", reports.paragraph(note), *cards)]


def _alarm_card(evaluation: Evaluation, entries: Sequence[tuple[VariantScores, Alarm]], root: Path) -> Html:
    messages = [reports.paragraph(f"{variant.name}: {alarm.message}.") for variant, alarm in entries]
    variant, alarm = entries[-1]
    names = list(dict.fromkeys(variant.name for variant, _ in entries))
    parts = [
        messages[-1],
        reports.paragraph(f"What to do: {alarm.advice}."),
        gallery.alarm_examples(evaluation, variant, alarm, root),
    ]
    if len(messages) > 1:
        summary = f"{format_count(len(messages) - 1, 'earlier variant')}"
        parts.append(reports.details(summary, *messages[:-1]))
    return reports.card(f"{alarm.title}: {format_name_range(names)}", *parts, good=False)


def _score_tables(evaluation: Evaluation, selection: Selection | None) -> list[Html]:
    base = evaluation.base
    tables = [figures.variants_table(evaluation, selection)]
    if base and selection and evaluation.adapter_variants:
        best = selection.variant or evaluation.adapter_variants[-1]
        tables.append(figures.gain_by_prompt_kind(evaluation, base, best))
    elif len(evaluation.variants) == 1:
        tables = [figures.scores_by_prompt_kind(evaluation, evaluation.variants[0])]
    return [*tables, _interval_note(), reports.details("Definitions", _definitions(evaluation))]


def _interval_note() -> Html:
    return reports.paragraph(
        "Brackets are 95 % intervals (bootstrap over prompts, each with all its seeds); differences are "
        f"paired by prompt and seed. With fewer than {MIN_PROMPTS} prompts they are only indicative."
    )


def _definitions(evaluation: Evaluation) -> Html:
    names = dict.fromkeys(name.partition("@")[0] for name in evaluation.metric_names())
    for variant in evaluation.variants:
        names |= dict.fromkeys(name for name in variant.set_metrics if name in METRICS)
    rows = [[METRICS[name].title, METRICS[name].description] for name in names]
    return reports.html_table(["Metric", "Definition"], rows)


def settings_section(settings: Mapping[str, Any], versions: Mapping[str, str]) -> list[Html]:
    """Return the settings that the scores depend on, with a table for each model."""
    # Sorted as in scores.json, so that a report written again is the same.
    settings = dict(sorted(settings.items()))
    rows = [
        [_setting_label(name), format_setting(value)]
        for name, value in settings.items()
        if not isinstance(value, Mapping)
    ]
    parts = [reports.html_table(["", ""], rows)] if rows else []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            parts += _model_settings(name, value)
    table = reports.html_table(["Package", "Version"], list(versions.items()))
    return [*parts, reports.details("Versions", table)]


def _model_settings(name: str, settings: Mapping[str, Any]) -> list[Html]:
    rows = [
        [_setting_label(key), format_setting(value)]
        for key, value in sorted(settings.items())
        if key != _TRUNCATED_TEXTS
    ]
    parts = [reports.html_table([_setting_label(name), ""], rows)]
    if texts := list(settings.get(_TRUNCATED_TEXTS) or []):
        items = reports.tag("ul", *(reports.tag("li", text) for text in texts))
        count = format_count(len(texts), "text")
        parts.append(reports.details(f"{count} too long for the model, scored only by the beginning", items))
    return parts


def _setting_label(name: str) -> str:
    if name.partition("@")[0] in METRICS:
        return name
    return name[:1].upper() + name[1:].replace("_", " ")


def format_setting(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return NO_VALUE if value is None else str(value)
