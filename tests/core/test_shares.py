"""Intervals of shares: coverage with seeds that resemble each other, and with equal answers."""

import numpy as np
import pytest

from lorakit.core.shares import share_difference, share_interval


def simulated_answers(rng: np.random.Generator, share: float, prompts: int, seeds: int) -> list[float]:
    """Right and wrong answers; the difficulty of a prompt varies (beta-binomial, correlation .3)."""
    scale = 1 / 0.3 - 1
    chance = rng.beta(share * scale, (1 - share) * scale, (prompts, 1))
    return (rng.random((prompts, seeds)) < chance).astype(float).ravel().tolist()


@pytest.mark.parametrize(("prompts", "seeds"), [(8, 4), (24, 4), (24, 1)])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_the_interval_of_a_share_covers_it(share: float, prompts: int, seeds: int) -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(prompts), seeds).tolist()
    hits = 0
    for _ in range(800):
        interval = share_interval(simulated_answers(rng, share, prompts, seeds), groups)
        hits += interval.ci_low <= share <= interval.ci_high
        assert 0 <= interval.ci_low < interval.ci_high <= 1
    assert 0.92 <= hits / 800 <= 0.99


def test_equal_answers_leave_a_share_uncertain() -> None:
    groups = np.repeat(np.arange(8), 4).tolist()
    never, always = share_interval([0.0] * 32, groups), share_interval([1.0] * 32, groups)
    assert (never.mean, never.ci_low) == (0, 0)
    assert 0.1 < never.ci_high < 0.3
    assert always.ci_low == pytest.approx(1 - never.ci_high)
    alike = share_difference([0.0] * 32, [0.0] * 32, groups)
    assert alike.ci_low < 0 < alike.ci_high


def test_seeds_that_repeat_each_other_count_less() -> None:
    groups = np.repeat(np.arange(24), 4).tolist()
    independent = share_interval(([0.0, 1.0] * 48), groups)
    repeated = share_interval(np.repeat([0.0, 1.0] * 12, 4), groups)
    assert repeated.ci_high - repeated.ci_low > 1.5 * (independent.ci_high - independent.ci_low)


def test_the_interval_of_a_difference_of_shares_covers_it() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(24), 4).tolist()
    hits = 0
    for _ in range(600):
        first, second = (simulated_answers(rng, share, 24, 4) for share in (0.2, 0.4))
        interval = share_difference(first, second, groups)
        hits += interval.ci_low <= 0.2 <= interval.ci_high
    assert 0.92 <= hits / 600 <= 0.985
