"""The tables of a report: scores of all variants, by kind of prompt, differences, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.core.statistics import Interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation.comparison import metric_differences
from lorakit.evaluation.metric_table import METRICS, metric_spec
from lorakit.evaluation.report.number_format import (
    NO_VALUE,
    format_count,
    format_interval,
    format_percent_interval,
    format_score,
)
from lorakit.evaluation.report.variants import variant_badges
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.reports import Badge, Table, level_of

SET_METRICS = ("vendi", "cmmd")
TABLE_EXCLUDED = ("clip_t_shuffled", "nearest_train_similarity", "drift")  # shown in charts and alarms
SCORE_TITLES = {"fidelity": "Fidelity", "prompt_adherence": "Prompt adherence"}
_TRUNCATED_TEXTS = "truncated_texts"  # in a CLIP model's settings


def variants_table(evaluation: Evaluation, selection: Selection | None) -> Table:
    """Return one row for each variant: fidelity, prompt adherence, metrics on the subject, its badges."""
    prompts = evaluation.prompts_of_role("subject") or evaluation.prompts
    other_prompts = evaluation.prompts_of_role("class", "unrelated")
    variants = evaluation.variants
    candidates = {c.variant.name: c for c in selection.candidates} if selection else {}
    shares = [name for name in SCORE_TITLES if any(getattr(c, name) for c in candidates.values())]
    names = [name for name in evaluation.metric_names() if name not in TABLE_EXCLUDED]
    set_metrics = [name for name in SET_METRICS if any(name in variant.set_metrics for variant in variants)]
    has_drift = bool(other_prompts) and any("drift" in variant.scores for variant in variants)
    heads = ["Variant", *(SCORE_TITLES[name] for name in shares), *(metric_spec(n).title for n in names)]
    heads += ["Drift of other prompts"] if has_drift else []
    heads += [metric_spec(name).title for name in set_metrics] + (["Notes"] if selection else [])
    rows: list[list[Any]] = []
    for variant in variants:
        candidate = candidates.get(variant.name)
        row: list[Any] = [variant.name]
        row += [_share_cell(getattr(candidate, name)) if candidate else NO_VALUE for name in shares]
        row += [_interval_text(evaluation, variant, name, prompts) for name in names]
        row += [_interval_text(evaluation, variant, "drift", other_prompts)] if has_drift else []
        row += [format_score(variant.set_metrics.get(n, math.nan), metric_spec(n)) for n in set_metrics]
        rows.append([*row, variant_badges(variant, selection)] if selection else row)
    return Table(heads, rows, "Scores of all variants")


def _share_cell(interval: Interval | None) -> str | Badge:
    if interval and interval.unknown_reason:
        return Badge("unknown", "note", interval.unknown_reason)
    return format_percent_interval(interval)


def _interval_text(
    evaluation: Evaluation, variant: VariantScores, name: str, prompts: Sequence[Prompt]
) -> str:
    return format_interval(evaluation.interval(variant, name, prompts), metric_spec(name))


def gain_by_prompt_kind(evaluation: Evaluation, first: VariantScores, second: VariantScores) -> Table:
    """CLIP-T of two variants, their difference, and CLIP accuracy, for each kind of prompts and for all."""
    has_accuracy = "clip_accuracy" in second.scores
    rows = []
    for kind, prompts in _prompts_by_kind(evaluation):
        row = [kind, str(len(prompts))]
        row += [_interval_text(evaluation, variant, "clip_t", prompts) for variant in (first, second)]
        difference = evaluation.paired_difference(first, second, "clip_t", prompts)
        row.append(format_interval(difference, metric_spec("clip_t"), signed=True))
        if has_accuracy:
            row += [_interval_text(evaluation, one, "clip_accuracy", prompts) for one in (first, second)]
        rows.append(row)
    heads = ["Kind", "Prompts", f"CLIP-T, {first.name}", f"CLIP-T, {second.name}", "Gain in CLIP-T"]
    if has_accuracy:
        heads += [f"CLIP accuracy, {first.name}", f"CLIP accuracy, {second.name}"]
    return Table(heads, rows)


def scores_by_prompt_kind(evaluation: Evaluation, variant: VariantScores) -> Table:
    """All metrics of a single variant for each kind of prompts and for all."""
    names = evaluation.metric_names()
    rows = [
        [kind, str(len(prompts)), *(_interval_text(evaluation, variant, name, prompts) for name in names)]
        for kind, prompts in _prompts_by_kind(evaluation)
    ]
    return Table(["Kind", "Prompts", *(metric_spec(name).title for name in names)], rows)


def _prompts_by_kind(evaluation: Evaluation) -> list[tuple[str, list[Prompt]]]:
    """Return the prompts of each kind in order of appearance, then all of them if there are several kinds."""
    kinds = list(dict.fromkeys(prompt.kind for prompt in evaluation.prompts))
    groups = [(kind, [p for p in evaluation.prompts if p.kind == kind]) for kind in kinds]
    return groups + ([("all prompts", evaluation.prompts)] if len(kinds) > 1 else [])


def differences_table(evaluation: Evaluation, first: VariantScores, second: VariantScores) -> Table:
    """Every metric of two variants with their paired difference."""
    rows = []
    for difference in metric_differences(evaluation, first, second, evaluation.prompts):
        name, good = difference.name, difference.is_better
        metric, prompts = metric_spec(name), evaluation.prompts
        scores = [_interval_text(evaluation, variant, name, prompts) for variant in (first, second)]
        unclear = "differs" if difference.is_beyond_chance else "no difference"
        label = {True: "better", False: "worse", None: unclear}[good]
        change = format_interval(difference.interval, metric, signed=True)
        rows.append([metric.title, *scores, change, Badge(label, None if good is None else level_of(good))])
    return Table(["Metric", first.name, second.name, "Difference", "Beyond chance"], rows)


def definitions_table(evaluation: Evaluation) -> Table:
    """Return the definition of each metric of the evaluation."""
    names = dict.fromkeys(name.partition("@")[0] for name in evaluation.metric_names())
    for variant in evaluation.variants:
        names |= dict.fromkeys(name for name in variant.set_metrics if name in METRICS)
    return Table(
        ["Metric", "Definition"], [[METRICS[name].title, METRICS[name].description] for name in names]
    )


def settings_tables(settings: Mapping[str, Any]) -> list[Table]:
    """Return the settings that the scores depend on, with a table for each model."""
    # Sorted as in scores.json, so that a report written again is the same.
    settings = dict(sorted(settings.items()))
    rows = [
        [_setting_label(name), format_setting(value)]
        for name, value in settings.items()
        if not isinstance(value, Mapping)
    ]
    models = [
        Table(
            [_setting_label(name), ""],
            [
                [_setting_label(k), format_setting(v)]
                for k, v in sorted(value.items())
                if k != _TRUNCATED_TEXTS
            ],
        )
        for name, value in settings.items()
        if isinstance(value, Mapping)
    ]
    return [*([Table(["", ""], rows)] if rows else []), *models]


def truncated_texts(settings: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the texts that are too long for each model, with a summary of them."""
    lists = [
        list(value.get(_TRUNCATED_TEXTS) or ())
        for _, value in sorted(settings.items())
        if isinstance(value, Mapping)
    ]
    return [
        (f"{format_count(len(texts), 'text')} too long for the model, scored only by the beginning", texts)
        for texts in lists
        if texts
    ]


def _setting_label(name: str) -> str:
    if name.partition("@")[0] in METRICS:
        return name
    return name[:1].upper() + name[1:].replace("_", " ")


def format_setting(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return NO_VALUE if value is None else str(value)
