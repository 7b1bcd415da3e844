"""report.html of an evaluation: one file that works offline, with the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit import reports
from lorakit.core.statistics import MIN_PROMPTS
from lorakit.evaluation.diagnosis import Verdict, fidelity_figure
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report import figures, gallery, tables, verdict
from lorakit.evaluation.report.alarm_cards import alarm_cards
from lorakit.evaluation.report.number_format import format_count, format_interval, format_percent_interval
from lorakit.evaluation.report.variants import best_variant
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.evaluation.unknowns import find_unknowns
from lorakit.evaluation.vote.pages import result_table
from lorakit.evaluation.vote.summary import VoteSummary
from lorakit.evaluation.vote.texts import summary_sentences
from lorakit.reports import Table

TEMPLATES = Path(__file__).with_name("templates")


def evaluation_page(
    evaluation: Evaluation,
    selection: Selection | None,
    root: Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    versions: Mapping[str, str],
    votes: VoteSummary | None = None,
) -> str:
    """Return the whole document; `metrics` are rows of the run's metrics.jsonl."""
    notes = verdict.selection_notes(evaluation, selection)
    cards = alarm_cards(evaluation, selection, root)
    headline = verdict.selection_headline(evaluation, selection)
    return reports.render_page(
        TEMPLATES / "evaluation.html",
        title=evaluation.title,
        subtitle=_subtitle(evaluation),
        verdict=headline,
        next_step=_next_step(headline, selection),
        figures=_key_figures(evaluation, selection),
        unknowns=find_unknowns(evaluation) if selection else [],
        missing=[*_unknown_figures(evaluation, selection), *evaluation.notes],
        gallery=gallery.evaluation_gallery(evaluation, root, selection),
        alarms=cards,
        charts=figures.training_charts(evaluation, selection) if selection else [],
        scatter=figures.fidelity_adherence_chart(evaluation, selection) if selection else None,
        notes=[note for note in notes if note not in evaluation.notes],
        tables=_score_tables(evaluation, selection),
        curves=reports.training_curves(metrics) if metrics else None,
        run=Table(["", ""], evaluation.details) if evaluation.details else None,
        **_votes(votes),
        **_settings(evaluation, versions),
    )


def comparison_page(
    evaluation: Evaluation, root: Path, *, versions: Mapping[str, str], votes: VoteSummary | None = None
) -> str:
    """Return the document of two variants side by side."""
    first, second = evaluation.variants
    few = len(evaluation.prompts) < MIN_PROMPTS
    count = format_count(len(evaluation.prompts), "prompt")
    return reports.render_page(
        TEMPLATES / "comparison.html",
        title=evaluation.title,
        subtitle=_subtitle(evaluation),
        verdict=verdict.comparison_summary(evaluation, first, second),
        missing=[
            *([f"Indicative only: {count}, fewer than {MIN_PROMPTS}."] if few else []),
            *evaluation.notes,
        ],
        gallery=gallery.comparison_gallery(evaluation, root),
        differences=tables.differences_table(evaluation, first, second),
        kinds=tables.gain_by_prompt_kind(evaluation, first, second),
        **_votes(votes),
        **_settings(evaluation, versions),
    )


def _settings(evaluation: Evaluation, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that both pages show at their end."""
    return {
        "min_prompts": MIN_PROMPTS,
        "definitions": tables.definitions_table(evaluation),
        "settings": tables.settings_tables(evaluation.settings),
        "truncated": tables.truncated_texts(evaluation.settings),
        "versions": Table(["Package", "Version"], list(versions.items())),
    }


def _votes(votes: VoteSummary | None) -> dict[str, Any]:
    """Return the sentences and the table of the votes; nothing without votes."""
    has_votes = votes is not None and bool(votes.pairs)
    return {
        "vote_texts": summary_sentences(votes) if votes and has_votes else [],
        "vote_table": result_table(votes) if votes and has_votes else None,
    }


def _subtitle(evaluation: Evaluation) -> str:
    seeds = sorted({len(prompt.seeds) for prompt in evaluation.prompts} or {0})
    each = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else format_count(seeds[0], "seed")
    images = sum(len(variant.files) for variant in evaluation.variants)
    prompts = format_count(len(evaluation.prompts), "prompt")
    return f"{format_count(len(evaluation.variants), 'variant')}, {prompts} with {each}, {images:,} images"


def _next_step(headline: Verdict, selection: Selection | None) -> str:
    """Return the next step, and for a selected checkpoint of a run the commands that use it."""
    if not (headline.good and selection and selection.variant and selection.variant.origin):
        return headline.next_step
    return "`lorakit export RUN` and `lorakit sample BASE --adapter RUN` use this checkpoint."


def _key_figures(evaluation: Evaluation, selection: Selection | None) -> list[tuple[str, str]]:
    """Return the figures of the selected variant that a reader looks for first."""
    if selection is None or selection.variant is None:
        return []
    entries = []
    if fidelity := fidelity_figure(evaluation, selection):
        entries.append((fidelity, "fidelity: 0 % is the base model, 100 % other true images of the subject"))
    adherence = selection.prompt_adherence
    if adherence and adherence.is_known:
        entries.append((format_percent_interval(adherence), "prompt adherence: 100 % is the base model"))
    return entries + _change_of_others(evaluation, selection)


def _unknown_figures(evaluation: Evaluation, selection: Selection | None) -> list[str]:
    """Say which figures of the selected variant cannot be determined, and why."""
    if selection is None or selection.variant is None:
        return []
    fidelity = "A more exact fidelity" if fidelity_figure(evaluation, selection) else "Fidelity"
    figures = {fidelity: selection.fidelity, "Prompt adherence": selection.prompt_adherence}
    return [
        f"{name} cannot be determined: {interval.unknown_reason}."
        for name, interval in figures.items()
        if interval and not interval.is_known
    ]


def _change_of_others(evaluation: Evaluation, selection: Selection) -> list[tuple[str, str]]:
    prompts = evaluation.prompts_of_role("class", "unrelated")
    assert selection.variant
    drift = evaluation.interval(selection.variant, "drift", prompts) if prompts else None
    if drift is None:
        return []
    limit = f", the limit is {100 * selection.max_drift.value:.1f}" if selection.max_drift else ""
    return [(format_interval(drift, metric_spec("drift")), f"drift of prompts without the subject{limit}")]


def _score_tables(evaluation: Evaluation, selection: Selection | None) -> list[Table]:
    """Return the scores of all variants, and by kind of prompt those of the selected one."""
    base: VariantScores | None = evaluation.base
    if len(evaluation.variants) == 1:
        return [tables.scores_by_prompt_kind(evaluation, evaluation.variants[0])]
    scores = [tables.variants_table(evaluation, selection)]
    if base and selection and evaluation.adapter_variants:
        best = best_variant(evaluation, selection)
        scores.append(tables.gain_by_prompt_kind(evaluation, base, best))
    return scores
