"""The pick, on simulated evaluations whose truth is known: its regret, its place, what it says of ties."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lorakit.evaluation import quality
from lorakit.evaluation import select as picking
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.select import select_checkpoint, split_prompts
from tests.evaluation.simulated import Truth, evaluation, overfitting, prompts


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(quality, "RESAMPLES", 400)


def naive(made) -> int:
    """The index of what looks best by eye: the highest fidelity on all prompts."""
    arms = made.tuned
    return int(np.argmax([made.interval(arm, "dino_i", made.of_role("subject")).mean for arm in arms]))


def test_the_pick_lies_before_the_overfit_end_and_costs_little():
    """Twenty noisy evaluations of one run: alarms take the end out, and what is picked is nearly the best of
    the rest, where the highest fidelity always takes the overfit end."""
    truths = overfitting()
    regrets, steps, by_fidelity = [], [], []
    for seed in range(20):
        made = evaluation(truths, seed=seed)
        found = select_checkpoint(made)
        chosen = next(t for t in truths if t.step == found.arm.step)
        sound = [t for t in truths if f"step {t.step}" in {arm.name for arm in found.passed}]
        regrets.append(max(t.quality for t in sound) - chosen.quality)
        steps.append(chosen.step)
        by_fidelity.append(truths[naive(made)].step)
        assert {"step 900", "step 1000"} <= {s.arm.name for s in found.standings if s.alarms}
    assert np.mean(regrets) < 0.03
    assert max(regrets) < 0.12
    assert max(steps) <= 800
    assert min(by_fidelity) >= 800


def test_of_equals_the_earliest_is_taken_and_the_others_are_named():
    """A plateau: from step 300 on nothing changes, so noise decides the best; the rule takes an early one."""
    truths = [Truth(100 * n, fidelity=0.7 if n >= 3 else 0.3 * n / 3, adherence=1.0) for n in range(1, 11)]
    steps, best, ties = [], [], []
    for seed in range(20):
        made = evaluation(truths, seed=seed)
        found = select_checkpoint(made)
        steps.append(found.arm.step)
        ties.append(len(found.runners_up))
        scale = NormalizedScores(made, made.tuned, split_prompts(made.of_role("subject"))[0])
        best.append(made.tuned[int(scale.qualities()[0].argmax())].step)
        assert not {"step 100", "step 200"} & set(found.runners_up)
    assert min(steps) >= 300
    assert np.mean(steps) < 450 < np.mean(best)
    assert np.mean(ties) > 5  # of seven


def test_what_the_choosing_prompts_promise_is_too_much_and_the_others_tell_the_truth():
    """The winner's curse: with twenty equal checkpoints the best of them looks better than it is."""
    truths = [Truth(10 * n, fidelity=0.6, adherence=0.7) for n in range(1, 21)]
    told, promised = [], []
    for seed in range(20):
        made = evaluation(truths, seed=seed, other=0)
        choosing = NormalizedScores(made, made.tuned, split_prompts(made.of_role("subject"))[0])
        point, _ = choosing.qualities()
        promised.append(point.max())
        reporting = NormalizedScores(
            made, [made.tuned[int(point.argmax())]], split_prompts(made.of_role("subject"))[1]
        )
        told.append(float(reporting.qualities()[0][0]))
    truth = math.sqrt(0.6 * 0.7)
    assert np.mean(promised) > truth + 0.02
    assert np.mean(told) == pytest.approx(truth, abs=0.02)


def test_the_reported_intervals_cover_the_truth():
    """Fidelity and adherence of what was picked, told by the prompts that did not choose: 90 to 98 % of the
    intervals for nominal 95 % hold it."""
    truths = [Truth(100, 0.5, 0.8), Truth(200, 0.6, 0.7)]
    hits = []
    for seed in range(120):
        made = evaluation(truths, seed=seed, subject=48, other=0)
        choosing, reporting = split_prompts(made.of_role("subject"))
        row = int(NormalizedScores(made, made.tuned, choosing).qualities()[0].argmax())
        scale = NormalizedScores(made, made.tuned, reporting)
        for kind in ("fidelity", "adherence"):
            interval = scale.interval(kind, row)
            hits.append(interval.low <= getattr(truths[row], kind) <= interval.high)
    assert 0.90 <= np.mean(hits) <= 0.98


def test_halves_share_every_kind_and_do_not_depend_on_the_order():
    made = [replace(p, kind=kind) for kind, p in zip(["view", "style"] * 12, prompts(24, 0), strict=True)]
    choosing, reporting = split_prompts(made)
    assert not {p.id for p in choosing} & {p.id for p in reporting}
    assert len(choosing) == len(reporting) == 12
    for half in (choosing, reporting):
        assert sum(p.kind == "view" for p in half) == 6
    again, _ = split_prompts(made[::-1])
    assert {p.id for p in again} == {p.id for p in choosing}
    few = made[: picking.MIN_PROMPTS_TO_SPLIT - 1]
    assert split_prompts(few) == (few, few)


def test_fewer_than_24_prompts_are_indicative_and_very_few_are_not_held_back():
    truths = [Truth(100, 0.7, 1.0)]
    assert not select_checkpoint(evaluation(truths)).indicative
    twelve, four = (
        select_checkpoint(evaluation(truths, subject=12)),
        select_checkpoint(evaluation(truths, subject=4)),
    )
    assert (twelve.indicative, twelve.held_back) == (True, True)
    assert (four.indicative, four.held_back) == (True, False)


def test_when_every_arm_has_an_alarm_nothing_is_picked():
    found = select_checkpoint(
        evaluation([Truth(100, 0.9, 1.0, copies=0.8), Truth(200, 0.95, 1.0, copies=0.9)])
    )
    assert found.arm is None
    assert found.why == "every arm has an alarm"
    assert found.to_json()["pick"] is None
    assert set(found.to_json()["alarms"]) == {"step 100", "step 200"}


def test_more_than_a_control_is_no_merit():
    """An adapter that outdoes the base at prompts is not preferred for it."""
    made = evaluation([Truth(100, 0.8, 1.0), Truth(200, 0.5, 1.6)], noise=0.2)
    assert select_checkpoint(made).arm.step == 100


def test_without_a_base_or_references_nothing_is_claimed():
    made = evaluation([Truth(100, 0.8, 1.0)])
    alone = evaluation([Truth(100, 0.8, 1.0)])
    alone.arms = alone.arms[1:]
    assert select_checkpoint(alone).arm is None
    made.ceiling = []
    found = select_checkpoint(made)
    assert found.fidelity is None
    assert found.adherence is not None


def test_the_answer_is_plain_json():
    found = select_checkpoint(evaluation(overfitting()))
    value = json.loads(json.dumps(found.to_json()))
    assert value["pick"] == found.arm.name
    assert 0 < value["quality"]["low"] < value["quality"]["high"]
    assert value["drift_budget"]["value"] > 0
