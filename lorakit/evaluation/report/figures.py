"""The charts and tables of a report: fidelity against prompt adherence, metrics over steps, scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorakit import reports
from lorakit.core.statistics import Interval, bootstrap_mean
from lorakit.data.prompts import Prompt, Role
from lorakit.evaluation.alarms import MIN_DIVERSITY_RATIO, diversity_ratio
from lorakit.evaluation.report.number_format import format_interval, format_percent_interval, format_score
from lorakit.evaluation.report.verdict import ROLE_LABELS
from lorakit.evaluation.score_table import Evaluation, VariantScores, metric_spec
from lorakit.evaluation.select import Selection, VariantQuality
from lorakit.reports import Html

IntervalOf = Callable[[VariantScores], Interval | None]
CHART_METRICS: tuple[tuple[str, tuple[Role, ...]], ...] = (
    ("clip_t", ("subject", "class", "unrelated")),
    ("clip_accuracy", ("subject",)),
    ("drift", ("class", "unrelated")),
    ("nearest_train_similarity", ("subject",)),
    ("vqascore", ("subject",)),
    ("ocr_accuracy", ("subject",)),
)
SET_METRICS = ("vendi", "cmmd")
TABLE_EXCLUDED = ("clip_t_shuffled", "nearest_train_similarity", "drift")  # shown in charts and alarms
SCORE_TITLES = {"fidelity": "Fidelity", "prompt_adherence": "Prompt adherence"}


def fidelity_adherence_chart(evaluation: Evaluation, selection: Selection) -> list[Html]:
    """Return a chart of all variants with their intervals and its explanation; nothing without points."""
    points = [
        point
        for candidate in selection.candidates
        if (point := _scatter_point(candidate, selection)) is not None
    ]
    if not points:
        return []
    note = (
        "Fidelity is the similarity to the reference images: 0 % is the base model, 100 % is the similarity "
        "of the references to each other (each left out in turn). Prompt adherence is the match of image and "
        "prompt: 0 % is the match with shuffled prompts, 100 % is the base model. Crosses are 95 % intervals "
        "over prompts. The selected variant is green; variants with an alarm are hollow."
    )
    chart = reports.scatter_chart(
        points,
        x_label="prompt adherence, %",
        y_label="fidelity, %",
        horizontal_lines={"base model": 0.0, "reference images": 100.0},
        vertical_lines={"base model": 100.0},
        connected_labels=[point.label for point in points] if _has_single_strength(evaluation) else [],
    )
    return [chart, reports.paragraph(note)]


def _scatter_point(candidate: VariantQuality, selection: Selection) -> reports.ScatterPoint | None:
    fidelity, adherence = candidate.fidelity, candidate.prompt_adherence
    if fidelity is None or adherence is None:
        return None
    name = candidate.variant.name
    good = True if candidate.variant is selection.variant else False if candidate.alarms else None
    scores = (
        f"{name}: fidelity {format_percent_interval(fidelity)}, "
        f"prompt adherence {format_percent_interval(adherence)}"
    )
    tooltip = "; ".join([scores, *(f"{alarm.title}: {alarm.message}" for alarm in candidate.alarms)])
    return reports.ScatterPoint(name, _as_percent(adherence), _as_percent(fidelity), good, tooltip)


def _as_percent(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.mean, 100 * interval.ci_low, 100 * interval.ci_high


def _has_single_strength(evaluation: Evaluation) -> bool:
    return len({variant.strength for variant in evaluation.adapter_variants}) < 2


@dataclass(frozen=True)
class _ChartSpec:
    """A metric over steps; values are shown multiplied by `scale`, with named horizontal lines."""

    title: str
    value_of: IntervalOf
    scale: float = 1.0
    horizontal_lines: Mapping[str, float] = field(default_factory=dict)


def metric_charts(evaluation: Evaluation, selection: Selection) -> list[Html]:
    """Return small charts of every metric over steps, or over strengths if there is only one step."""
    variants = evaluation.adapter_variants
    steps = {variant.step for variant in variants}
    strengths = {variant.strength for variant in variants}
    if max(len(steps), len(strengths)) < 2:
        return []
    x_axis = "step" if len(steps) > 1 else "strength"
    charts = []
    for spec in [*_score_charts(evaluation, selection), *_other_charts(evaluation)]:
        values = {variant.name: value for variant in variants if (value := spec.value_of(variant))}
        if len(values) < 2:
            continue
        base = spec.value_of(evaluation.base) if evaluation.base else None
        lines = ({"base model": base.mean} if base else {}) | dict(spec.horizontal_lines)
        charts.append(_metric_chart(variants, values, x_axis, spec, lines, selection))
    return [reports.columns(*charts)] if charts else []


def _score_charts(evaluation: Evaluation, selection: Selection) -> list[_ChartSpec]:
    """Charts of image scores, with the thresholds of the alarms."""
    lines: dict[str, dict[str, float]] = {}
    if evaluation.references and np.isfinite(ceiling := evaluation.references.ceiling(None)):
        lines[evaluation.fidelity_metric] = {"references": ceiling}
    if selection.max_drift:
        lines["drift"] = {"limit": selection.max_drift.value}
    if evaluation.copy_threshold:
        lines["nearest_train_similarity"] = {"copy threshold": evaluation.copy_threshold.similarity}

    def value_of(name: str, prompts: Sequence[Prompt]) -> IntervalOf:
        return lambda variant: evaluation.interval(variant, name, prompts)

    metrics: list[tuple[str, tuple[Role, ...]]] = [
        (evaluation.fidelity_metric, ("subject",)),
        *CHART_METRICS,
    ]
    return [
        _ChartSpec(
            f"{metric_spec(name).title}, {ROLE_LABELS[role]}",
            value_of(name, prompts),
            metric_spec(name).scale,
            lines.get(name, {}),
        )
        for name, roles in metrics
        for role in roles
        if (prompts := evaluation.prompts_of_role(role))
    ]


def _other_charts(evaluation: Evaluation) -> list[_ChartSpec]:
    def loss(name: str) -> IntervalOf:
        return lambda variant: _mean_loss(variant, name)

    def ratio(variant: VariantScores) -> Interval | None:
        return diversity_ratio(evaluation, variant, evaluation.prompts)

    return [
        _ChartSpec("Diversity, % of the base model's", ratio, 100.0, {"minimum": MIN_DIVERSITY_RATIO}),
        _ChartSpec("Validation loss", loss("validation")),
        _ChartSpec("Loss on training images", loss("train")),
    ]


def _mean_loss(variant: VariantScores, name: str) -> Interval | None:
    losses = variant.losses.get(name)
    return bootstrap_mean(losses, list(range(len(losses)))) if losses else None


def _metric_chart(
    variants: Sequence[VariantScores],
    values: Mapping[str, Interval],
    x_axis: str,
    spec: _ChartSpec,
    horizontal_lines: Mapping[str, float],
    selection: Selection,
) -> Html:
    """One curve with its band for each strength."""
    scale = spec.scale
    curves: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for variant in variants:
        if variant.name not in values:
            continue
        interval, strength = values[variant.name], 1.0 if variant.strength is None else variant.strength
        curve = f"strength {strength:g}" if x_axis == "step" else spec.title
        x = float((variant.step or 0) if x_axis == "step" else strength)
        curves.setdefault(curve, []).append((x, scale * interval.mean))
        bands.setdefault(curve, []).append((x, scale * interval.ci_low, scale * interval.ci_high))
    vertical_lines = {}
    if selection.variant:
        x_selected = selection.variant.step if x_axis == "step" else selection.variant.strength
        vertical_lines = {"selected": float(x_selected or 0)}
    return reports.line_chart(
        curves,
        x_label=x_axis,
        y_label=spec.title,
        bands=bands,
        horizontal_lines={name: scale * value for name, value in horizontal_lines.items()},
        vertical_lines=vertical_lines,
        half_width=True,
    )


def variants_table(evaluation: Evaluation, selection: Selection | None) -> Html:
    """One row for each variant: fidelity and prompt adherence, its metrics on the subject, its alarms."""
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
    heads += [metric_spec(name).title for name in set_metrics] + (["Alarms"] if selection else [])
    rows: list[list[str | Html]] = []
    for variant in variants:
        candidate = candidates.get(variant.name)
        row: list[str | Html] = [reports.tag("span", variant.name, style="white-space: nowrap")]
        row += [format_percent_interval(getattr(candidate, name)) if candidate else "" for name in shares]
        row += [_interval_text(evaluation, variant, name, prompts) for name in names]
        row += [_interval_text(evaluation, variant, "drift", other_prompts)] if has_drift else []
        row += [format_score(variant.set_metrics.get(n, math.nan), metric_spec(n)) for n in set_metrics]
        if selection:
            row.append(", ".join(alarm.title for alarm in candidate.alarms) if candidate else "")
        rows.append(row)
    return reports.html_table(heads, rows)


def _interval_text(
    evaluation: Evaluation, variant: VariantScores, name: str, prompts: Sequence[Prompt]
) -> str:
    return format_interval(evaluation.interval(variant, name, prompts), metric_spec(name))


def gain_by_prompt_kind(evaluation: Evaluation, first: VariantScores, second: VariantScores) -> Html:
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
    return reports.html_table(heads, rows)


def scores_by_prompt_kind(evaluation: Evaluation, variant: VariantScores) -> Html:
    """All metrics of a single variant for each kind of prompts and for all."""
    names = evaluation.metric_names()
    rows = [
        [kind, str(len(prompts)), *(_interval_text(evaluation, variant, name, prompts) for name in names)]
        for kind, prompts in _prompts_by_kind(evaluation)
    ]
    return reports.html_table(["Kind", "Prompts", *(metric_spec(name).title for name in names)], rows)


def _prompts_by_kind(evaluation: Evaluation) -> list[tuple[str, list[Prompt]]]:
    """Return the prompts of each kind in order of appearance, then all of them if there are several kinds."""
    kinds = list(dict.fromkeys(prompt.kind for prompt in evaluation.prompts))
    groups = [(kind, [p for p in evaluation.prompts if p.kind == kind]) for kind in kinds]
    return groups + ([("all prompts", evaluation.prompts)] if len(kinds) > 1 else [])


def differences_table(evaluation: Evaluation, first: VariantScores, second: VariantScores) -> Html:
    """Every metric of two variants with their paired difference."""
    rows = []
    for name in evaluation.metric_names():
        metric, prompts = metric_spec(name), evaluation.prompts
        scores = [_interval_text(evaluation, variant, name, prompts) for variant in (first, second)]
        difference = evaluation.paired_difference(first, second, name, prompts)
        certain = difference is not None and (difference.ci_low > 0 or difference.ci_high < 0)
        good = None
        if difference and certain and metric.direction:
            good = (difference.mean > 0) == (metric.direction > 0)
        label = {True: "better", False: "worse", None: "differs" if certain else "no difference"}[good]
        change = format_interval(difference, metric, signed=True)
        rows.append([metric.title, *scores, change, reports.badge(label, good)])
    return reports.html_table(["Metric", first.name, second.name, "Difference", "Beyond chance"], rows)
