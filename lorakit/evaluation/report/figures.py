"""The charts of a report: fidelity against prompt adherence, and gains over the base model over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lorakit import reports
from lorakit.core.statistics import Interval, mean_interval
from lorakit.data.prompts import Prompt, Role
from lorakit.evaluation.alarms import MIN_DIVERSITY_RATIO, diversity_ratio
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report.number_format import format_percent_interval
from lorakit.evaluation.report.variants import variant_key
from lorakit.evaluation.report.verdict import ROLE_LABELS
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection, VariantQuality
from lorakit.reports import Chart, Level

IntervalOf = Callable[[VariantScores], Interval | None]
GAIN_METRICS: tuple[tuple[str, tuple[Role, ...]], ...] = (
    ("clip_t", ("subject", "class", "unrelated")),
    ("clip_accuracy", ("subject",)),
    ("nearest_train_similarity", ("subject",)),
    ("vqascore", ("subject",)),
    ("ocr_accuracy", ("subject",)),
)
DRIFT_ROLES: tuple[Role, ...] = ("class", "unrelated")
LOSS_TITLES = {"validation": "Validation loss", "train": "Loss on training images"}


def fidelity_adherence_chart(evaluation: Evaluation, selection: Selection) -> Chart | None:
    """Return a chart of all variants with their intervals; None without points."""
    points = [
        point
        for candidate in selection.candidates
        if (point := _scatter_point(evaluation, candidate, selection)) is not None
    ]
    if not points:
        return None
    return reports.scatter_chart(
        points,
        x_label="prompt adherence, %",
        y_label="fidelity, %",
        horizontal_lines={"base model": 0.0, "true images": 100.0},
        vertical_lines={"base model": 100.0},
        connected_labels=[point.label for point in points] if _has_single_strength(evaluation) else [],
    )


def _scatter_point(
    evaluation: Evaluation, candidate: VariantQuality, selection: Selection
) -> reports.ScatterPoint | None:
    fidelity, adherence = candidate.fidelity, candidate.prompt_adherence
    if not (fidelity and adherence and fidelity.is_known and adherence.is_known):
        return None
    name = candidate.variant.name
    scores = (
        f"{name}: fidelity {format_percent_interval(fidelity)}, "
        f"prompt adherence {format_percent_interval(adherence)}"
    )
    tooltip = "; ".join([scores, *(f"{alarm.title}: {alarm.message}" for alarm in candidate.alarms)])
    link = row_link(evaluation, candidate.variant)
    level = _level(candidate, selection)
    return reports.ScatterPoint(name, _as_percent(adherence), _as_percent(fidelity), level, tooltip, link)


def _level(candidate: VariantQuality, selection: Selection) -> Level | None:
    if candidate.variant is selection.variant:
        return "good"
    levels = {alarm.level for alarm in candidate.alarms}
    return "bad" if "alarm" in levels else "warn" if levels else None


def row_link(evaluation: Evaluation, variant: VariantScores) -> str:
    """Return the address of the variant's images in the overview, which a page of few variants lacks."""
    return f"#at-{variant_key(evaluation, variant)}" if len(evaluation.variants) > 2 else ""


def _as_percent(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.mean, 100 * interval.ci_low, 100 * interval.ci_high


def _has_single_strength(evaluation: Evaluation) -> bool:
    return len({variant.strength for variant in evaluation.adapter_variants}) < 2


@dataclass(frozen=True)
class _ChartSpec:
    """A figure over steps; values are shown multiplied by `scale`, with named horizontal lines."""

    title: str
    value_of: IntervalOf
    scale: float = 1.0
    horizontal_lines: Mapping[str, float] = field(default_factory=dict)


def training_charts(evaluation: Evaluation, selection: Selection) -> list[Chart]:
    """Return small charts over steps, or over strengths if there is only one step; none for one variant."""
    variants = evaluation.adapter_variants
    steps = {variant.step for variant in variants}
    strengths = {variant.strength for variant in variants}
    if max(len(steps), len(strengths)) < 2:
        return []
    x_axis = "step" if len(steps) > 1 else "strength"
    specs = [*_quality_charts(selection), *_gain_charts(evaluation), *_other_charts(evaluation, selection)]
    charts = []
    for spec in specs:
        values = {v.name: value for v in variants if (value := spec.value_of(v)) and value.is_known}
        if len(values) > 1:
            charts.append(_chart(evaluation, values, x_axis, spec, selection))
    return charts


def _quality_charts(selection: Selection) -> list[_ChartSpec]:
    """Fidelity and prompt adherence between their anchors, which are paired with the base model already."""
    candidates = {candidate.variant.name: candidate for candidate in selection.candidates}

    def value_of(name: str) -> IntervalOf:
        return lambda variant: getattr(candidates.get(variant.name), name, None)

    lines = {"base model": 0.0, "true images": 1.0}
    return [
        _ChartSpec("Fidelity, %", value_of("fidelity"), 100.0, lines),
        _ChartSpec("Prompt adherence, %", value_of("prompt_adherence"), 100.0, {"base model": 1.0}),
    ]


def _gain_charts(evaluation: Evaluation) -> list[_ChartSpec]:
    """Gains over the base model, paired by prompt and seed; without a base model the scores themselves."""
    base = evaluation.base

    def value_of(name: str, prompts: Sequence[Prompt]) -> IntervalOf:
        if base is None:
            return lambda variant: evaluation.interval(variant, name, prompts)
        return lambda variant: evaluation.paired_difference(base, variant, name, prompts)

    gain, lines = (": gain over the base model", {"base model": 0.0}) if base else ("", {})
    return [
        _ChartSpec(
            f"{metric_spec(name).title}{gain}, {ROLE_LABELS[role]}",
            value_of(name, prompts),
            metric_spec(name).scale,
            lines,
        )
        for name, roles in GAIN_METRICS
        for role in roles
        if (prompts := evaluation.prompts_of_role(role))
    ]


def _other_charts(evaluation: Evaluation, selection: Selection) -> list[_ChartSpec]:
    """Figures that compare with the base model by themselves: drift, diversity, and losses."""

    def drift(prompts: Sequence[Prompt]) -> IntervalOf:
        return lambda variant: evaluation.interval(variant, "drift", prompts)

    def ratio(variant: VariantScores) -> Interval | None:
        return diversity_ratio(evaluation, variant, evaluation.prompts)

    limit = {"limit": selection.max_drift.value} if selection.max_drift else {}
    drifts = [
        _ChartSpec(f"Drift, {ROLE_LABELS[role]}", drift(prompts), metric_spec("drift").scale, limit)
        for role in DRIFT_ROLES
        if (prompts := evaluation.prompts_of_role(role))
    ]
    minimum = {"minimum": MIN_DIVERSITY_RATIO}
    losses = [_loss_chart(evaluation, name, title) for name, title in LOSS_TITLES.items()]
    return [*drifts, _ChartSpec("Diversity, % of the base model's", ratio, 100.0, minimum), *losses]


def _loss_chart(evaluation: Evaluation, name: str, title: str) -> _ChartSpec:
    """The change of a loss from the base model, paired by image; the loss itself without the base model's."""
    base = evaluation.base.losses.get(name) if evaluation.base else None

    def value_of(variant: VariantScores) -> Interval | None:
        losses = variant.losses.get(name)
        if not losses:
            return None
        paired = base is not None and len(base) == len(losses)
        values = [loss - other for loss, other in zip(losses, base or (), strict=True)] if paired else losses
        return mean_interval(values)

    if base:
        return _ChartSpec(f"{title}: change from the base model", value_of, 1.0, {"base model": 0.0})
    return _ChartSpec(title, value_of)


def _chart(
    evaluation: Evaluation,
    values: Mapping[str, Interval],
    x_axis: str,
    spec: _ChartSpec,
    selection: Selection,
) -> Chart:
    """One curve with its band for each strength; its points lead to the images of the checkpoint."""
    scale = spec.scale
    curves: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    links = {}
    for variant in evaluation.adapter_variants:
        if variant.name not in values:
            continue
        interval, strength = values[variant.name], 1.0 if variant.strength is None else variant.strength
        curve = f"strength {strength:g}" if x_axis == "step" else spec.title
        x = float((variant.step or 0) if x_axis == "step" else strength)
        low, high = (interval.mean if math.isnan(end) else end for end in (interval.ci_low, interval.ci_high))
        curves.setdefault(curve, []).append((x, scale * interval.mean))
        bands.setdefault(curve, []).append((x, scale * low, scale * high))
        links[curve, x] = row_link(evaluation, variant)
    positions = {}
    if selection.variant:
        selected = selection.variant.step if x_axis == "step" else selection.variant.strength
        positions = {"selected": float(selected or 0)}
    return reports.line_chart(
        curves,
        x_label=x_axis,
        y_label=spec.title,
        bands=bands,
        horizontal_lines={name: scale * value for name, value in spec.horizontal_lines.items()},
        vertical_lines=positions,
        half_width=True,
        links=links,
    )
