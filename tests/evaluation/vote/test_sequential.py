"""The sequential test of votes: its errors, its length, and prompts as units.

`python -m tests.benchmarks votes` measures the same with more simulated voters.
"""

from __future__ import annotations

import pytest

from lorakit.evaluation.vote.sequential import (
    LEVEL,
    ScoredVote,
    SequentialResult,
    min_prompts,
    sequential_test,
    spent_level,
)
from tests.benchmarks.votes import SCENARIOS, Scenario, measure


def votes(scores: str, prompts: int = 24) -> list[ScoredVote]:
    """Votes on prompts in turn; `+` is for the first variant, `-` for the second, `.` for neither."""
    return [ScoredVote(str(i % prompts), "-.+".index(score) - 1) for i, score in enumerate(scores)]


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.share == 0.5], ids=lambda s: s.name)
def test_a_preference_that_does_not_exist_is_rarely_stated(scenario):
    """At most 5 %; of 120 simulated votes 12 is beyond what chance would allow in 1 of 100 repetitions."""
    outcomes = measure(scenario, count=120)
    assert outcomes.wrong <= 11 / 120
    if scenario.prompts == 24:
        assert outcomes.without_preference > 0.5


@pytest.mark.parametrize(("share", "found", "length"), [(0.7, 0.65, 56), (0.85, 0.95, 26)])
def test_a_preference_is_found_after_few_votes(share, found, length):
    outcomes = measure(Scenario("", share), count=60)
    assert outcomes.found >= found
    assert outcomes.wrong == 0
    assert outcomes.mean_votes <= length


def test_unanimous_votes_end_soon_and_later_votes_change_nothing():
    result = sequential_test(votes("+" * 30))
    assert result.outcome == "first"
    assert 7 <= result.ended_after <= 10
    assert sequential_test(votes("+" * result.ended_after)) == result
    assert sequential_test(votes("+" * (result.ended_after - 1))).outcome == "open"
    assert sequential_test(votes("+" * result.ended_after + "-" * 40)) == result
    assert sequential_test(votes("-" * 30)) == SequentialResult("second", result.ended_after)


def test_seeds_of_one_prompt_count_as_one_unit():
    assert sequential_test(votes("+" * 24, prompts=24)).outcome == "first"
    assert sequential_test(votes("+" * 24, prompts=3)).outcome == "open"


@pytest.mark.parametrize("level", [LEVEL, LEVEL / 3])
def test_the_test_can_end_from_a_number_of_prompts_on(level):
    enough = min_prompts(level)
    assert sequential_test(votes("+" * 20 * enough, enough), level).outcome == "first"
    assert sequential_test(votes("+" * 20 * (enough - 1), enough - 1), level).outcome == "open"


@pytest.mark.parametrize(("scores", "latest"), [("." * 60, 30), ("+-" * 30, 30), ("+.-" * 20, 30)])
def test_votes_without_a_preference_end_too(scores, latest):
    result = sequential_test(votes(scores, prompts=60))
    assert result.outcome == "no_preference"
    assert 15 <= result.ended_after <= latest


def test_a_preference_may_still_be_found_after_an_end_without_one():
    weak = votes("+-" * 14, 48)
    assert sequential_test(weak).outcome == "no_preference"
    later = weak + [ScoredVote(f"new {i}", 1) for i in range(40)]
    result = sequential_test(later)
    assert result.outcome == "first"
    assert result.ended_after > 28


def test_the_level_is_spent_slowly_and_never_exceeded():
    spent = [spent_level(count) for count in range(0, 500, 5)]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert spent[-1] <= LEVEL
    assert sequential_test([]) == SequentialResult("open")
