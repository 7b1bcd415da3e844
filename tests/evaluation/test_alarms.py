"""Alarms go off for what they are for, and for honest checkpoints no more often than they say."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.evaluation import alarms
from tests.evaluation.simulated import Truth, evaluation


def kinds(truth: Truth, seed: int = 0, **how) -> set[str]:
    made = evaluation([truth], seed=seed, **how)
    budget = alarms.drift_budget(made, None)
    return {alarm.kind for alarm in alarms.find_alarms(made, made.tuned[0], budget)}


HONEST = Truth(100, fidelity=0.7, adherence=1.0)


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (HONEST, set()),
        (Truth(100, 0.8, 0.9, copies=0.3), {"copy"}),
        (Truth(100, 1.5, 0.9), {"rote"}),
        (Truth(100, 0.8, 0.9, diversity=0.5), {"diversity"}),
        (Truth(100, 0.8, 0.9, drift=0.4), {"drift"}),
        (Truth(100, 0.5, 0.2), {"deaf"}),
        (Truth(100, 0.0, 1.0, drift=0.0), {"nothing"}),
    ],
)
def test_each_fault_raises_its_alarm_and_no_other(truth, expected):
    low = 0.1 if "nothing" in expected else 1.0  # noise alone would be a change
    assert kinds(truth, noise=low) == expected


def test_honest_checkpoints_raise_few_false_alarms():
    """Two hundred honest ones, with copies as frequent as chance makes them."""
    found = [kinds(HONEST, seed) for seed in range(200)]
    assert np.mean([bool(some) for some in found]) < 0.05


def test_copies_at_the_rate_of_chance_are_no_alarm_and_three_times_that_is():
    made = [
        evaluation([Truth(100, 0.7, 1.0, copies=share)], seed=seed)
        for share in (0.03, 0.20)
        for seed in range(40)
    ]
    fired = [bool([a for a in alarms.find_alarms(one, one.tuned[0]) if a.kind == "copy"]) for one in made]
    assert np.mean(fired[:40]) <= 0.05
    assert np.mean(fired[40:]) >= 0.95


def test_what_the_base_does_as_well_is_no_copy():
    """Prompts that describe training images make the base's pictures as near as the adapter's."""
    made = evaluation([Truth(100, 0.7, 1.0, copies=0.4)])
    base, arm = made.base, made.tuned[0]
    base.scores["nearest"] = dict(arm.scores["nearest"])
    assert not [alarm for alarm in alarms.find_alarms(made, arm) if alarm.kind == "copy"]


def test_the_examples_of_a_copy_are_the_nearest_ones():
    made = evaluation([Truth(100, 0.7, 1.0, copies=0.5)])
    arm = made.tuned[0]
    worst = max((key for key in arm.scores["nearest"] if key[0].startswith("s")), key=lambda key: key)
    arm.scores["nearest"][worst] = 0.999
    (alarm,) = [alarm for alarm in alarms.find_alarms(made, arm) if alarm.kind == "copy"]
    assert alarm.examples[0] == worst
    assert len(alarm.examples) == alarms.MAX_EXAMPLES
    assert all(arm.scores["nearest"][key] > made.limit.similarity for key in alarm.examples)


def test_sscd_above_one_half_is_a_copy():
    made = evaluation([HONEST])
    arm = made.tuned[0]
    arm.scores["sscd"] = dict.fromkeys(arm.files, 0.2)
    assert not alarms.find_alarms(made, arm)
    arm.scores["sscd"]["s3", 1] = 0.62
    (alarm,) = alarms.find_alarms(made, arm)
    assert (alarm.kind, alarm.examples) == ("copy", [("s3", 1)])
    assert "SSCD" in alarm.text


def test_the_drift_budget_is_what_another_seed_changes_or_what_was_asked():
    made = evaluation([HONEST])
    spreads = made.column(made.base, "diversity", made.of_role("unrelated"))
    assert alarms.drift_budget(made, None).value == pytest.approx(spreads.mean())
    assert alarms.drift_budget(made, 0.1) == alarms.DriftBudget(0.1, "as asked")
    made.base.totals["between_prompts"] = 5 * spreads.mean() + 0.5
    assert alarms.drift_budget(made, None).value == pytest.approx(spreads.mean() + 0.1)
    assert alarms.drift_budget(evaluation([HONEST], other=0), None) is None


def test_the_upper_bound_of_drift_counts():
    """A mean under the budget is not enough: it must be known to be."""
    made = evaluation([Truth(100, 0.7, 1.0, drift=0.08)], other=6)
    arm = made.tuned[0]
    found = made.interval(arm, "drift", made.of_role("unrelated"))
    between = (found.mean + found.high) / 2
    assert [a.kind for a in alarms.find_alarms(made, arm, alarms.DriftBudget(between, "as asked"))] == [
        "drift"
    ]
    assert not alarms.find_alarms(made, arm, alarms.DriftBudget(found.high * 1.01, "as asked"))


def test_without_controls_no_alarm_is_claimed():
    made = evaluation([Truth(100, 0.9, 0.1, copies=0.9, drift=0.9, diversity=0.1)])
    made.limit, made.ceiling, made.arms = None, [], made.arms[1:]
    assert alarms.find_alarms(made, made.arms[0]) == []
