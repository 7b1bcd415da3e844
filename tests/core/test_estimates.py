"""Figures with several sources of uncertainty: coverage of ratios, pairs, and the set of the best."""

import numpy as np
import pytest

from lorakit.core.estimates import Estimates, Variation, variation_of_means


def estimates(rows: np.ndarray, strata: tuple[str, ...] = ()) -> Estimates:
    return Estimates(rows.mean(0), (variation_of_means(rows, strata),), len(rows))


@pytest.mark.parametrize(("below", "noise"), [(1.0, 1.0), (0.5, 0.6)])
def test_the_interval_of_a_ratio_covers_it_though_both_parts_are_noisy(below, noise):
    rng = np.random.default_rng(1)
    hits = known = 0
    for _ in range(800):
        common = rng.normal(0, noise, (16, 1))
        rows = np.array([0.6 * below, below]) + common * [0.5, 1] + rng.normal(0, 0.2, (16, 2))
        interval = estimates(rows).ratio(0, 1)
        if interval is not None:
            known += 1
            hits += interval.ci_low <= 0.6 <= interval.ci_high
    assert known > 600
    assert 0.92 <= hits / known <= 0.98


@pytest.mark.parametrize("below", [-1.0, 0.0, 0.1])
def test_a_ratio_to_what_may_be_zero_is_unknown(below):
    rows = np.random.default_rng(0).normal([1.0, below], 1.0, (12, 2))
    rows -= rows.mean(0) - [1.0, below]
    assert estimates(rows).ratio(0, 1) is None


def test_sources_add_up_and_the_weaker_estimate_counts_for_the_degrees_of_freedom():
    prompts = Variation(np.array([[0.04]]), 23)
    references = Variation(np.array([[0.12]]), 3)
    joint = Estimates(np.array([1.0]), (prompts, references), 24)
    assert joint.variances() == pytest.approx([0.16])
    assert 3 < joint.freedom()[0] < 7
    alone = Estimates(np.array([1.0]), (prompts,), 24)
    assert alone.freedom() == pytest.approx([23])
    wide, narrow = joint.interval(0), alone.interval(0)
    assert wide.ci_high - wide.ci_low > 2 * (narrow.ci_high - narrow.ci_low)


def test_common_noise_cancels_in_a_difference():
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 1, (24, 1)) + np.array([0.0, 0.2]) + rng.normal(0, 0.1, (24, 2))
    difference, alone = estimates(rows).difference(1, 0), estimates(rows).interval(1)
    assert difference.ci_low > 0
    assert alone.ci_high - alone.ci_low > 4 * (difference.ci_high - difference.ci_low)


def test_the_difference_between_strata_is_not_noise():
    rng = np.random.default_rng(3)
    strata = ("a",) * 12 + ("b",) * 12
    rows = np.where(np.array(strata) == "a", 0.0, 5.0)[:, None] + rng.normal(0, 0.1, (24, 1))
    assert estimates(rows, strata).variances()[0] < 0.01 * estimates(rows).variances()[0]


def test_one_row_has_no_interval():
    single = estimates(np.array([[1.0, 2.0]]))
    assert not single.has_intervals
    assert np.isnan(single.interval(0).ci_low)
    ratio = single.ratio(0, 1)
    assert ratio is not None
    assert ratio.mean == 0.5
    assert single.not_clearly_worse() == [True, True]


def test_the_best_is_kept_at_the_level_of_the_family():
    """Ten equal figures: the truly best is any one of them, and rarely one of them is dropped."""
    rng = np.random.default_rng(4)
    dropped = 0
    for _ in range(400):
        rows = rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, (12, 10))
        dropped += not estimates(rows).not_clearly_worse()[0]
    assert dropped / 400 < 0.05


def test_what_is_clearly_worse_is_dropped_and_a_margin_drops_more():
    rng = np.random.default_rng(5)
    rows = np.array([0.0, 0.9, 1.0]) + rng.normal(0, 1, (24, 1)) + rng.normal(0, 0.1, (24, 3))
    assert estimates(rows).not_clearly_worse(level=0.999) == [False, True, True]
    assert estimates(rows).not_clearly_worse(level=0.5, margin=0.2) == [False, False, True]
    assert estimates(rows).not_clearly_worse(leader=1)[1:] == [True, True]
