"""What is wrong with an arm, beyond chance: it copies, learnt by heart, has lost diversity, drifts, does
nothing, does not listen. Limits are calibrated on the base or the training images of the same evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import Interval, bootstrap
from lorakit.data.prompts import Prompt
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.report.number_format import format_percent
from lorakit.evaluation.score_table import Evaluation, SampleKey, VariantScores, bootstrap_mean_interval

MIN_DIVERSITY_RATIO = 0.7  # of the base's
SSCD_COPY_THRESHOLD = 0.5  # similarity at which a pair is a copy (Pizzi et al.)
NO_EFFECT_THRESHOLD = 0.05  # of the way to another seed's picture
MIN_ADHERENCE = 0.7  # of the base's adherence
MIN_DRIFT_BUDGET_SHARE = 0.2  # of the way from one prompt's pictures to another's: the least drift budget
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Alarm:
    """`kind`: copy, rote, diversity, drift, nothing or deaf; `examples` are pictures that show it best."""

    kind: str
    text: str
    value: Interval | None = None
    limit: float | None = None
    examples: list[SampleKey] = field(default_factory=list)


@dataclass(frozen=True)
class DriftBudget:
    """The drift that is tolerated, as 1 - cosine, and where it comes from."""

    value: float
    origin: str


def drift_budget(evaluation: Evaluation, asked: float | None) -> DriftBudget | None:
    """The drift asked for, or what another seed of the base changes on the prompts without the subject.

    Where prompts leave a seed little freedom that is next to nothing, so it is at least a fifth of what
    separates different prompts.
    """
    if asked is not None:
        return DriftBudget(asked, "as asked")
    base, prompts = evaluation.base, evaluation.of_role("class", "unrelated")
    if base is None or not prompts:
        return None
    seeds = bootstrap_mean_interval(evaluation.column(base, "diversity", prompts))
    apart = base.totals.get("between_prompts")
    known = [(seeds.mean, "what another seed changes")] if seeds else []
    if apart is not None:
        known.append((MIN_DRIFT_BUDGET_SHARE * apart, "a fifth of the way to another prompt"))
    return DriftBudget(*max(known)) if known else None


def find_alarms(evaluation: Evaluation, arm: VariantScores, budget: DriftBudget | None = None) -> list[Alarm]:
    """All alarms of an arm, the gravest first."""
    checks: list[Callable[[], Alarm | None]] = [
        lambda: _memorized_images(evaluation, arm),
        lambda: _copy_detector_hits(evaluation, arm),
        lambda: _memorization(evaluation, arm),
        lambda: _prompt_ignored(evaluation, arm),
        lambda: _low_diversity(evaluation, arm),
        lambda: _drift(evaluation, arm, budget),
        lambda: _no_effect(evaluation, arm),
    ]
    return [alarm for check in checks if (alarm := check())]


def _memorized_images(evaluation: Evaluation, arm: VariantScores) -> Alarm | None:
    """More pictures near a training image than honest ones would be, and more than the base's."""
    limit, prompts = evaluation.limit, evaluation.of_role("subject")
    if limit is None or "nearest" not in arm.scores:
        return None
    shares = _shares_above(arm, "nearest", prompts, limit.similarity)
    found = bootstrap_mean_interval(shares)
    if found is None or not found.low > limit.rate:
        return None
    if evaluation.base:
        gained = bootstrap_mean_interval(
            shares - _shares_above(evaluation.base, "nearest", prompts, limit.similarity)
        )
        if gained is None or not gained.low > 0:
            return None
    text = (
        f"copies: {format_percent(found.mean)} of the pictures are nearer to a training image than these are to "
        f"each other; by chance {format_percent(limit.rate)} would be"
    )
    return Alarm("copy", text, found, limit.rate, _worst_examples(arm, "nearest", prompts, limit.similarity))


def _copy_detector_hits(evaluation: Evaluation, arm: VariantScores) -> Alarm | None:
    hits = _worst_examples(arm, "sscd", evaluation.prompts, SSCD_COPY_THRESHOLD)
    if not hits:
        return None
    count = sum(value > SSCD_COPY_THRESHOLD for value in arm.scores["sscd"].values())
    return Alarm(
        "copy",
        f"copies: SSCD is above {SSCD_COPY_THRESHOLD:g} for {count} pictures",
        None,
        SSCD_COPY_THRESHOLD,
        hits,
    )


def _memorization(evaluation: Evaluation, arm: VariantScores) -> Alarm | None:
    """Its pictures, of other things in other places, resemble the references more than these each other."""
    scale = NormalizedScores(evaluation, [arm], evaluation.of_role("subject"))
    found = scale.interval("fidelity", 0)
    if found is None or not found.low > 1:
        return None
    text = (
        "learnt by heart: pictures of other scenes resemble the references more than these each other "
        f"({format_percent(found.mean)} of the way from the base)"
    )
    keys = _worst_examples(arm, "nearest", evaluation.of_role("subject"), 0.0)
    return Alarm("rote", text, found, 1.0, keys)


def _low_diversity(evaluation: Evaluation, arm: VariantScores) -> Alarm | None:
    """The seeds of a prompt resemble each other more than the base's do."""
    found = diversity_ratio(evaluation, arm, evaluation.prompts)
    if found is None or not found.mean < MIN_DIVERSITY_RATIO:
        return None
    text = f"monotonous: the seeds of a prompt differ {format_percent(found.mean)} as much as the base's"
    return Alarm("diversity", text, found, MIN_DIVERSITY_RATIO)


def diversity_ratio(evaluation: Evaluation, arm: VariantScores, prompts: Sequence[Prompt]) -> Interval | None:
    """Diversity of an arm over that of the base, both as means over prompts."""
    base = evaluation.base
    if base is None or not prompts:
        return None
    table = np.stack([evaluation.column(one, "diversity", prompts) for one in (arm, base)], 1)
    table = table[np.isfinite(table).all(1)]
    if not len(table) or not table[:, 1].mean() > 0:
        return None
    return bootstrap(table, lambda means: means[..., 0] / means[..., 1])


def _drift(evaluation: Evaluation, arm: VariantScores, budget: DriftBudget | None) -> Alarm | None:
    """Prompts without the subject come out otherwise; the upper bound counts, for this is a budget."""
    prompts = evaluation.of_role("class", "unrelated")
    found = evaluation.interval(arm, "drift", prompts) if prompts else None
    if budget is None or found is None or not found.high > budget.value:
        return None
    told = f"{100 * found.mean:.1f} (up to {100 * found.high:.1f})"
    text = (
        f"drifts: prompts without the subject change by {told}, over the budget of "
        f"{100 * budget.value:.1f}, {budget.origin}; a lower strength drifts less"
    )
    worst = _worst_examples(arm, "drift", prompts, 0.0)
    return Alarm("drift", text, found, budget.value, worst)


def _no_effect(evaluation: Evaluation, arm: VariantScores) -> Alarm | None:
    """Its pictures of the subject are the base's."""
    base, prompts = evaluation.base, evaluation.of_role("subject") or evaluation.prompts
    if base is None or "drift" not in arm.scores:
        return None
    unit = bootstrap_mean_interval(evaluation.column(base, "diversity", prompts))
    table = evaluation.column(arm, "drift", prompts) / (unit.mean if unit and unit.mean > 0 else 1.0)
    found = bootstrap_mean_interval(table)
    if found is None or not (
        found.high < NO_EFFECT_THRESHOLD or (np.isnan(found.high) and found.mean < NO_EFFECT_THRESHOLD)
    ):
        return None
    return Alarm("nothing", "does nothing: it draws what the base draws", found, NO_EFFECT_THRESHOLD)


def _prompt_ignored(evaluation: Evaluation, arm: VariantScores) -> Alarm | None:
    """Pictures of the subject fit their prompts much worse than the base's, beyond chance."""
    scale = NormalizedScores(evaluation, [arm], evaluation.of_role("subject"))
    found = scale.interval("adherence", 0)
    if found is None or not (found.mean < MIN_ADHERENCE and found.high < 1):
        return None
    text = (
        f"does not listen: pictures fit their own prompts {format_percent(max(found.mean, 0))} as well as the base's"
        " do, against 0 % for shuffled prompts; were captions mixed up?"
    )
    return Alarm("deaf", text, found, MIN_ADHERENCE)


def _shares_above(
    arm: VariantScores, name: str, prompts: Sequence[Prompt], limit: float
) -> NDArray[np.float64]:
    """For each prompt the share of its seeds above a limit."""
    scores = arm.scores[name]
    hits = {key: float(score > limit) for key, score in scores.items()}
    rows = [[hits[p.id, s] for s in p.seeds if (p.id, s) in hits] or [math.nan] for p in prompts]
    return np.array([float(np.mean(row)) for row in rows])


def _worst_examples(
    arm: VariantScores, name: str, prompts: Sequence[Prompt], limit: float
) -> list[SampleKey]:
    """The pictures that are furthest above a limit, one a prompt."""
    worst: dict[str, tuple[float, SampleKey]] = {}
    ids = {prompt.id for prompt in prompts}
    for key, value in arm.scores.get(name, {}).items():
        if value > limit and key[0] in ids:
            worst[key[0]] = max(worst.get(key[0], (value, key)), (value, key))
    return [key for _, key in sorted(worst.values(), reverse=True)[:MAX_EXAMPLES]]
