"""The figures of a report: the plot of fidelity against adherence, metrics over steps, tables."""

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

MeanAndBounds = tuple[float, float, float]
IntervalOf = Callable[[VariantScores], Interval | None]


def fidelity_adherence_chart(evaluation: Evaluation, pick: Selection) -> list[Html]:
    """Fidelity against adherence, every arm with its intervals, between their controls."""
    points = [_cross_of(standing, pick) for standing in pick.standings]
    known = [point for point in points if point is not None]
    if not known:
        return []
    note = (
        "Fidelity: 0 % is the base, 100 % how alike the references are among themselves, each left out in "
        "turn. Adherence: 0 % is how well pictures fit the prompts of others, 100 % the base's own fit. "
        "Crosses are 95 % intervals over prompts. The choice is green; arms with an alarm are hollow."
    )
    chart = reports.scatter_chart(
        known,
        x_label="adherence to prompts, %",
        y_label="fidelity to the references, %",
        levels={"fidelity of the base": 0.0, "of the references": 100.0},
        marks={"prompts as by the base": 100.0},
        path=[point.label for point in known] if _has_single_strength(evaluation) else [],
    )
    return [chart, reports.paragraph(note)]


def _cross_of(standing: VariantQuality, pick: Selection) -> reports.ScatterPoint | None:
    if standing.fidelity is None or standing.adherence is None:
        return None
    good = True if standing.arm is pick.arm else False if standing.alarms else None
    told = f"{standing.arm.name}: fidelity {format_percent_interval(standing.fidelity)}, adherence {format_percent_interval(standing.adherence)}"
    note = "; ".join([told, *(alarm.text for alarm in standing.alarms)])
    return reports.ScatterPoint(
        standing.arm.name, _as_percent(standing.adherence), _as_percent(standing.fidelity), good, note
    )


def _as_percent(interval: Interval) -> MeanAndBounds:
    return 100 * interval.mean, 100 * interval.low, 100 * interval.high


def _has_single_strength(evaluation: Evaluation) -> bool:
    return len({arm.strength for arm in evaluation.tuned}) < 2


@dataclass(frozen=True)
class _ChartSpec:
    """One metric over steps: its name, an arm's interval, the factor to show it by, and lines across."""

    title: str
    curve: IntervalOf
    scale: float = 1.0
    levels: Mapping[str, float] = field(default_factory=dict)


def metric_charts(evaluation: Evaluation, pick: Selection) -> list[Html]:
    """Small charts of every metric over steps, or over strengths where there is one step."""
    tuned = evaluation.tuned
    steps = {arm.step for arm in tuned}
    strengths = {arm.strength for arm in tuned}
    if max(len(steps), len(strengths)) < 2:
        return []
    over = "step" if len(steps) > 1 else "strength"
    drawn = []
    for chart in [*_score_charts(evaluation, pick), *_other_charts(evaluation)]:
        found = {arm.name: interval for arm in tuned if (interval := chart.curve(arm))}
        if len(found) < 2:
            continue
        base = chart.curve(evaluation.base) if evaluation.base else None
        levels = ({"base": base.mean} if base else {}) | dict(chart.levels)
        drawn.append(_variant_chart(tuned, found, over, chart, levels, pick))
    return [reports.columns(*drawn)] if drawn else []


def _score_charts(evaluation: Evaluation, pick: Selection) -> list[_ChartSpec]:
    """The scores of pictures, with the limits that alarms hold them against."""
    wanted: list[tuple[str, tuple[Role, ...]]] = [
        (evaluation.eye, ("subject",)),
        ("clip_t", ("subject", "class", "unrelated")),
        ("right", ("subject",)),
        ("drift", ("class", "unrelated")),
        ("nearest", ("subject",)),
        ("vqascore", ("subject",)),
        ("ocr", ("subject",)),
    ]
    limits: dict[str, dict[str, float]] = {}
    if evaluation.ceiling:
        limits[evaluation.eye] = {"references": float(np.mean(evaluation.ceiling))}
    if pick.budget:
        limits["drift"] = {"budget": pick.budget.value}
    if evaluation.limit:
        limits["nearest"] = {"limit of copies": evaluation.limit.similarity}

    def curve(name: str, prompts: Sequence[Prompt]) -> IntervalOf:
        return lambda arm: evaluation.interval(arm, name, prompts)

    return [
        _ChartSpec(
            f"{metric_spec(name).title}, {ROLE_LABELS[role]}",
            curve(name, prompts),
            metric_spec(name).scale,
            limits.get(name, {}),
        )
        for name, roles in wanted
        for role in roles
        if (prompts := evaluation.of_role(role))
    ]


def _other_charts(evaluation: Evaluation) -> list[_ChartSpec]:
    def losses(kind: str) -> IntervalOf:
        return lambda arm: _mean_loss(arm, kind)

    def ratio(arm: VariantScores) -> Interval | None:
        return diversity_ratio(evaluation, arm, evaluation.prompts)

    return [
        _ChartSpec("Diversity, % of the base's", ratio, 100.0, {"least": MIN_DIVERSITY_RATIO}),
        _ChartSpec("Loss of held-out images", losses("held out")),
        _ChartSpec("Loss of training images", losses("trained on")),
    ]


def _mean_loss(arm: VariantScores, kind: str) -> Interval | None:
    losses = arm.losses.get(kind)
    return bootstrap_mean(losses, list(range(len(losses)))) if losses else None


def _variant_chart(
    tuned: Sequence[VariantScores],
    found: Mapping[str, Interval],
    over: str,
    chart: _ChartSpec,
    levels: Mapping[str, float],
    pick: Selection,
) -> Html:
    """One curve a strength, with its band."""
    scale = chart.scale
    lines: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for arm in tuned:
        if arm.name not in found:
            continue
        interval, strength = found[arm.name], 1.0 if arm.strength is None else arm.strength
        line = f"strength {strength:g}" if over == "step" else chart.title
        x = float((arm.step or 0) if over == "step" else strength)
        lines.setdefault(line, []).append((x, scale * interval.mean))
        bands.setdefault(line, []).append((x, scale * interval.low, scale * interval.high))
    marks = {}
    if pick.arm:
        at = pick.arm.step if over == "step" else pick.arm.strength
        marks = {"pick": float(at or 0)}
    return reports.line_chart(
        lines,
        x_label=over,
        y_label=chart.title,
        bands=bands,
        levels={name: scale * value for name, value in levels.items()},
        marks=marks,
        half=True,
    )


def variants_table(evaluation: Evaluation, pick: Selection | None) -> Html:
    """One row an arm: its place between the controls, its scores on the subject, its alarms."""
    prompts = evaluation.of_role("subject") or evaluation.prompts
    names = [name for name in evaluation.measured() if name not in ("shuffled", "nearest", "drift")]
    totals = [name for name in ("vendi", "cmmd") if any(name in arm.totals for arm in evaluation.arms)]
    standings = {s.arm.name: s for s in pick.standings} if pick else {}
    told = [kind for kind in ("fidelity", "adherence") if any(getattr(s, kind) for s in standings.values())]
    rest = evaluation.of_role("class", "unrelated")
    drifted = bool(rest) and any("drift" in arm.scores for arm in evaluation.arms)
    heads = ["Arm", *(kind.capitalize() for kind in told), *(metric_spec(name).title for name in names)]
    heads += ["Drift of other prompts"] if drifted else []
    heads += [metric_spec(name).title for name in totals] + (["Alarms"] if pick else [])
    rows: list[list[str | Html]] = []
    for arm in evaluation.arms:
        standing = standings.get(arm.name)
        row: list[str | Html] = [arm.name.replace(" ", "\u00a0")]  # kept on one line
        row += [format_percent_interval(getattr(standing, kind)) if standing else "" for kind in told]
        row += [format_interval(evaluation.interval(arm, name, prompts), metric_spec(name)) for name in names]
        row += (
            [format_interval(evaluation.interval(arm, "drift", rest), metric_spec("drift"))]
            if drifted
            else []
        )
        row += [format_score(arm.totals.get(name, math.nan), metric_spec(name)) for name in totals]
        row += [", ".join(alarm.kind for alarm in standing.alarms) if standing else ""] if pick else []
        rows.append(row)
    return reports.html_table(heads, rows)


def gain_by_prompt_kind(evaluation: Evaluation, before: VariantScores, after: VariantScores) -> Html:
    """CLIP-T and its gain by kind of prompts, then of all."""
    shown, asked = metric_spec("clip_t"), "right" in after.scores
    rows = []
    for kind, prompts in _by_kind(evaluation):
        scores = [
            format_interval(evaluation.interval(arm, "clip_t", prompts), shown) for arm in (before, after)
        ]
        gain = format_interval(evaluation.gain(before, after, "clip_t", prompts), shown, signed=True)
        rights = [evaluation.interval(arm, "right", prompts) for arm in (before, after)] if asked else []
        rows.append(
            [
                kind,
                str(len(prompts)),
                *scores,
                gain,
                *(format_interval(right, metric_spec("right")) for right in rights),
            ]
        )
    heads = ["Kind", "Prompts", before.name, after.name, "Gain in CLIP-T"]
    return reports.html_table([*heads, *(["Right before", "Right after"] if asked else [])], rows)


def scores_by_prompt_kind(evaluation: Evaluation, arm: VariantScores) -> Html:
    """The scores of a single arm by kind of prompts."""
    names = evaluation.measured()
    rows = [
        [
            kind,
            str(len(prompts)),
            *(format_interval(evaluation.interval(arm, name, prompts), metric_spec(name)) for name in names),
        ]
        for kind, prompts in _by_kind(evaluation)
    ]
    return reports.html_table(["Kind", "Prompts", *(metric_spec(name).title for name in names)], rows)


def _by_kind(evaluation: Evaluation) -> list[tuple[str, list[Prompt]]]:
    """The prompts of each kind in order of first appearance, then, of several kinds, all of them."""
    kinds = list(dict.fromkeys(prompt.kind for prompt in evaluation.prompts))
    groups = [(kind, [p for p in evaluation.prompts if p.kind == kind]) for kind in kinds]
    return groups + ([("all prompts", evaluation.prompts)] if len(kinds) > 1 else [])


def differences_table(evaluation: Evaluation, before: VariantScores, after: VariantScores) -> Html:
    """Every metric of two arms with its paired difference."""
    rows = []
    for name in evaluation.measured():
        shown, prompts = metric_spec(name), evaluation.prompts
        scores = [format_interval(evaluation.interval(arm, name, prompts), shown) for arm in (before, after)]
        gain = evaluation.gain(before, after, name, prompts)
        certain = gain is not None and (gain.low > 0 or gain.high < 0)
        good = None
        if gain and certain and shown.better:
            good = (gain.mean > 0) == (shown.better > 0)
        label = {True: "better", False: "worse", None: "differs" if certain else "no difference"}[good]
        rows.append(
            [shown.title, *scores, format_interval(gain, shown, signed=True), reports.badge(label, good)]
        )
    return reports.html_table(["Metric", before.name, after.name, "Difference", "Beyond chance"], rows)
