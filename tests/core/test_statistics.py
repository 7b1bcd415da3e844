"""Intervals: do they cover the truth as often as they say, with prompts as units?"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from lorakit.core.statistics import (
    Interval,
    bootstrap,
    holm,
    mean_interval,
    student_quantile,
)

PROMPTS, SEEDS, RUNS = 24, 4, 1000


def coverage(prompts: int, *, between: float, within: float, independent: bool, runs: int = RUNS) -> float:
    """Share of simulated evaluations whose interval holds the true mean, 0; prompts differ, seeds as well."""
    rng = np.random.default_rng(7)
    groups = list(range(prompts * SEEDS)) if independent else np.repeat(np.arange(prompts), SEEDS).tolist()
    hits = 0
    for _ in range(runs):
        effect = rng.normal(0, between, (prompts, 1))
        values = (effect + rng.normal(0, within, (prompts, SEEDS))).ravel()
        interval = mean_interval(values, groups)
        hits += interval.ci_low <= 0 <= interval.ci_high
    return hits / runs


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.3), (1.0, 1.0), (0.0, 1.0)])
def test_a_95_percent_interval_covers_90_to_98_percent(between: float, within: float) -> None:
    assert 0.90 <= coverage(PROMPTS, between=between, within=within, independent=False) <= 0.98


def test_few_prompts_are_still_covered() -> None:
    assert coverage(6, between=1, within=0.5, independent=False) >= 0.90


def test_pictures_as_units_would_be_overconfident() -> None:
    """The reason for the unit; if this stopped failing to cover, the simulation would prove nothing."""
    assert coverage(PROMPTS, between=1, within=0.5, independent=True, runs=300) < 0.80


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_the_interval_of_a_ratio_covers_it(ratio: float) -> None:
    """Means of two columns whose prompts vary together, as the diversity of an adapter over the base's."""
    rng = np.random.default_rng(11)
    hits = 0
    for run in range(400):
        base = rng.gamma(6.0, 0.05, PROMPTS)
        table = np.stack([ratio * base + rng.normal(0, 0.03, PROMPTS), base], 1)
        interval = bootstrap(table, lambda means: means[..., 0] / means[..., 1], n=400, seed=run)
        hits += interval.ci_low <= ratio <= interval.ci_high
    assert 0.90 <= hits / 400 <= 0.98


def test_a_statistic_is_resampled_by_whole_rows() -> None:
    """Where one column is twice the other in every prompt, their ratio has no spread at all."""
    column = np.random.default_rng(1).normal(5, 1, 12)
    interval = bootstrap(np.stack([2 * column, column], 1), lambda m: m[..., 0] / m[..., 1], n=200)
    assert interval == Interval(2.0, pytest.approx(2.0), pytest.approx(2.0), 12)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(PROMPTS), SEEDS).tolist()
    difficulty = np.repeat(rng.normal(0.25, 0.05, PROMPTS), SEEDS)
    a = difficulty + rng.normal(0, 0.01, PROMPTS * SEEDS)
    b = difficulty + rng.normal(0.01, 0.01, PROMPTS * SEEDS)
    gain, alone = mean_interval(b - a, groups), mean_interval(b, groups)
    assert gain.mean == pytest.approx(float((b - a).mean()))
    assert gain.ci_low > 0
    assert alone.ci_high - alone.ci_low > 2 * (gain.ci_high - gain.ci_low)


def test_prompts_weigh_the_same_whatever_their_seeds() -> None:
    assert mean_interval([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]).mean == 0.5


def test_names_of_prompts_do_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=40)
    numbers = [i // 4 for i in range(40)]
    assert mean_interval(values, numbers) == mean_interval(values, [f"p{n}" for n in numbers])


def test_the_seed_repeats_a_bootstrap() -> None:
    table = np.random.default_rng(0).normal(5, 1, (12, 2))
    one, same, other = (
        bootstrap(table, lambda m: m[..., 0] / m[..., 1], n=200, seed=seed) for seed in (5, 5, 6)
    )
    assert one == same
    assert one != other


def test_a_higher_level_is_wider() -> None:
    values, groups = np.random.default_rng(0).normal(size=40), list(range(40))
    narrow, wide = (mean_interval(values, groups, level=level) for level in (0.8, 0.99))
    assert wide.ci_low < narrow.ci_low < narrow.mean < narrow.ci_high < wide.ci_high


def test_one_prompt_gives_a_mean_without_an_interval() -> None:
    interval = mean_interval([0.2, 0.4], ["a", "a"])
    assert interval.mean == pytest.approx(0.3)
    assert math.isnan(interval.ci_low)
    assert interval.to_json()["ci_low"] is None


@pytest.mark.parametrize(("num_prompts", "few_prompts"), [(23, True), (24, False)])
def test_fewer_than_24_prompts_are_marked_as_few(num_prompts: int, few_prompts: bool) -> None:
    interval = mean_interval(np.arange(num_prompts), list(range(num_prompts)))
    assert interval.few_prompts is few_prompts
    assert interval.to_json()["few_prompts"] is few_prompts


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([], []),
        lambda: mean_interval([1.0], ["a", "b"]),
        lambda: mean_interval([math.nan], ["a"]),
        lambda: mean_interval([1.0, 2.0], ["a", "b"], level=95),
    ],
)
def test_unusable_input_is_refused(call: Callable[[], Interval]) -> None:
    with pytest.raises(ValueError, match=r"least one value|not finite|level"):
        call()


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (23, 2.069), (95, 1.985)],
)
def test_student_quantiles_match_the_tables(freedom: int, value: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(value, rel=2e-3)


def test_many_prompts_stay_within_memory() -> None:
    values: NDArray[np.float64] = np.random.default_rng(0).normal(size=20_000)
    interval = mean_interval(values, list(range(20_000)))
    assert interval.ci_low < interval.mean < interval.ci_high
    assert interval.ci_high - interval.ci_low == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.15)


@pytest.mark.parametrize(("prompts", "minimum"), [(8, 0.875), (24, 0.905)])
def test_skewed_scores_are_covered_better_than_by_a_symmetric_interval(prompts: int, minimum: float) -> None:
    """Log-normal scores with sigma 1, as few scores are: the bootstrap covers .84 and .88."""
    rng = np.random.default_rng(5)
    samples = rng.lognormal(0, 1, (1500, prompts))
    hits = [(i := mean_interval(row)).ci_low <= math.exp(0.5) <= i.ci_high for row in samples]
    symmetric = 0
    for row in samples:
        margin = student_quantile(0.975, prompts - 1) * row.std(ddof=1) / math.sqrt(prompts)
        symmetric += abs(row.mean() - math.exp(0.5)) <= margin
    assert np.mean(hits) > max(minimum, symmetric / len(samples) + 0.02)


def test_many_differences_are_judged_at_the_level_of_the_family() -> None:
    """Of fifteen differences that are zero, some interval of its own excludes zero in half of the cases; at
    the level of the family in one of twenty. A large difference is recognized with both.
    """
    rng = np.random.default_rng(4)
    alone = family = recognized = 0
    for _ in range(300):
        tables = rng.normal(0, 1, (15, 12))
        alone += any(mean_interval(row).excludes_zero for row in tables)
        family += any(holm([lambda level, row=row: mean_interval(row, level=level) for row in tables]))
        tables[0] += 3
        recognized += holm([lambda level, row=row: mean_interval(row, level=level) for row in tables])[0]
    assert alone / 300 > 0.3
    assert family / 300 < 0.09
    assert recognized / 300 > 0.9


def test_an_unknown_figure_has_a_reason_and_no_numbers() -> None:
    unknown = Interval.unknown("there are no references", 24)
    assert not unknown.is_known
    assert not unknown.excludes_zero
    answer = unknown.to_json()
    assert (answer["mean"], answer["ci_low"], answer["ci_high"]) == (None, None, None)
    assert answer["unknown_reason"] == "there are no references"
