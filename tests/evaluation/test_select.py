"""Checkpoint selection on simulated evaluations with known truth: its regret, its ties, its reasons."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorakit.evaluation import select
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.select import select_checkpoint
from tests.evaluation.simulated import Truth, overfitting_run, simulate


def highest_fidelity(evaluation) -> int:
    """The index of the variant with the highest fidelity on all prompts."""
    prompts = evaluation.prompts_of_role("subject")
    means = [evaluation.interval(v, "dino_i", prompts).mean for v in evaluation.adapter_variants]
    return int(np.argmax(means))


@pytest.fixture
def raise_alarms(monkeypatch):
    """Return a function that sets the alarms of variants by name; all others have none."""

    def set_alarms(alarms: dict[str, list[Alarm]]) -> None:
        monkeypatch.setattr(
            select.alarms, "find_alarms", lambda evaluation, variant, limit: alarms.get(variant.name, [])
        )

    return set_alarms


def test_the_selection_lies_before_the_overfit_end_and_costs_little():
    """Five noisy evaluations of one run: the selected checkpoint is almost the best of those without an
    alarm, while the highest fidelity is always at the overfit end."""
    truths = overfitting_run()
    regrets, steps, by_fidelity = [], [], []
    for seed in range(5):
        evaluation = simulate(truths, seed=seed)
        selection = select_checkpoint(evaluation)
        selected = next(t for t in truths if t.step == selection.variant.step)
        sound_names = {variant.name for variant in selection.without_alarms}
        sound = [t for t in truths if f"step-{t.step}" in sound_names]
        regrets.append(max(t.quality for t in sound) - selected.quality)
        steps.append(selected.step)
        by_fidelity.append(truths[highest_fidelity(evaluation)].step)
    assert np.mean(regrets) < 0.02
    assert max(regrets) < 0.1
    assert max(steps) <= 800
    assert min(by_fidelity) >= 800


def test_of_equal_checkpoints_the_best_is_selected_and_the_others_are_named(raise_alarms):
    """From step 300 on nothing changes, so noise decides: there is no reason to stop early, and all the
    others are named as tied."""
    raise_alarms({})
    truths = [
        Truth(100 * n, fidelity=0.7 if n >= 3 else 0.3 * n / 3, prompt_adherence=1.0) for n in range(1, 11)
    ]
    ties = []
    for seed in range(8):
        selection = select_checkpoint(simulate(truths, seed=seed))
        assert selection.variant is selection.best
        assert selection.variant.step >= 300
        ties.append(len(selection.tied_with))
        assert not {"step-100", "step-200"} & set(selection.tied_with)
    assert np.mean(ties) > 6  # of seven


def test_an_earlier_checkpoint_is_selected_where_something_worsens(raise_alarms):
    """Quality stays the same from step 300 on, while other prompts drift more and more."""
    raise_alarms({})
    truths = [
        Truth(100 * n, 0.7 if n >= 3 else 0.3 * n / 3, 1.0, drift=0.05 + 0.05 * n, diversity=1 - 0.03 * n)
        for n in range(1, 11)
    ]
    steps, best_steps, reasons = [], [], set()
    for seed in range(8):
        selection = select_checkpoint(simulate(truths, seed=seed))
        steps.append(selection.variant.step)
        best_steps.append(selection.best.step)
        reasons.update(selection.worsened)
        if selection.variant is not selection.best:
            assert f"{selection.best.name} is worse in" in selection.reason
    assert min(steps) >= 300
    assert np.mean(steps) < np.mean(best_steps)
    assert "drift" in reasons


@pytest.mark.parametrize(
    ("fidelities", "is_rising"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),
        ([0.1, 0.5, 0.7, 0.7, 0.7, 0.7], False),
        ([0.2, 0.7, 0.4], False),
    ],
)
def test_a_run_that_stopped_too_early_is_still_rising(fidelities, is_rising, raise_alarms):
    raise_alarms({})
    truths = [Truth(100 * n, value, 1.0) for n, value in enumerate(fidelities, 1)]
    answers = [select_checkpoint(simulate(truths, seed=seed)).still_rising for seed in range(6)]
    assert answers.count(is_rising) >= 5


def test_a_run_whose_last_checkpoint_has_an_alarm_is_not_to_be_trained_longer(raise_alarms):
    raise_alarms({"step-300": [Alarm("drift", "too far")]})
    truths = [Truth(100 * n, 0.2 * n, 1.0) for n in range(1, 4)]
    assert not select_checkpoint(simulate(truths)).still_rising


def test_alarms_leave_the_best_in_sight(raise_alarms):
    """The best has an alarm: another is recommended, and the best is named. A warning changes nothing."""
    truths = [Truth(100, 0.5, 1.0), Truth(200, 0.9, 1.0)]
    raise_alarms({"step-200": [Alarm("copied_images", "a copy")]})
    selection = select_checkpoint(simulate(truths))
    assert (selection.variant.step, selection.best.step) == (100, 200)
    assert not selection.despite_alarms
    raise_alarms({"step-200": [Alarm("copied_images", "perhaps", level="warning")]})
    selection = select_checkpoint(simulate(truths))
    assert selection.variant.step == selection.best.step == 200
    assert [candidate.alarms[0].level for candidate in selection.candidates[1:]] == ["warning"]


def test_the_least_bad_is_recommended_if_all_have_alarms(raise_alarms):
    """The fewest alarms count, but not of a checkpoint that has learned next to nothing."""
    copied, drift = Alarm("copied_images", "a copy"), Alarm("drift", "too far")
    truths = [Truth(100, 0.1, 1.0), Truth(200, 0.8, 1.0), Truth(300, 0.9, 1.0)]
    raise_alarms({"step-100": [drift], "step-200": [drift], "step-300": [drift, copied]})
    selection = select_checkpoint(simulate(truths))
    assert selection.despite_alarms
    assert (selection.variant.step, selection.best.step) == (200, 300)
    answer = selection.to_json()
    assert (answer["selected"], answer["best"], answer["despite_alarms"]) == ("step-200", "step-300", True)
    assert [row["alarms"] for row in answer["variants"]] == [["drift"], ["drift"], ["drift", "copied_images"]]


def test_the_reported_figures_are_not_those_of_the_luckiest(raise_alarms):
    """The winner's curse: of twelve equal checkpoints the best looks better than it is; cross-fitted it does
    not."""
    raise_alarms({})
    truths = [Truth(10 * n, fidelity=0.6, prompt_adherence=0.7) for n in range(1, 13)]
    reported, promised = [], []
    for seed in range(8):
        selection = select_checkpoint(simulate(truths, seed=seed, unrelated=0))
        own = next(c for c in selection.candidates if c.variant is selection.variant)
        reported.append(selection.quality.mean)
        promised.append(own.quality.mean)
        assert selection.num_folds == 4
    truth = 2 * 0.6 * 0.7 / (0.6 + 0.7)
    assert np.mean(promised) > truth + 0.015
    assert np.mean(reported) == pytest.approx(truth, abs=0.015)


def test_fewer_than_24_prompts_are_marked_and_very_few_are_not_left_out_in_turn():
    truths = [Truth(100, 0.7, 1.0)]
    assert not select_checkpoint(simulate(truths)).few_prompts
    twelve, three = (select_checkpoint(simulate(truths, subject=count)) for count in (12, 3))
    assert (twelve.few_prompts, twelve.num_folds) == (True, 4)
    assert (three.few_prompts, three.num_folds) == (True, 0)
    assert three.fidelity is not None


def test_one_prompt_selects_without_an_interval():
    selection = select_checkpoint(
        simulate([Truth(100, 0.3, 1.0), Truth(200, 0.8, 1.0)], subject=1, noise=0.2)
    )
    assert selection.variant.step == 200
    assert np.isnan(selection.quality.ci_low)


def test_little_merit_lies_beyond_an_anchor():
    """An adapter that follows prompts better than the base model is hardly preferred for it."""
    evaluation = simulate([Truth(100, 0.8, 1.0), Truth(200, 0.5, 1.6)], noise=0.2)
    assert select_checkpoint(evaluation).variant.step == 100


def test_without_base_images_nothing_is_selected():
    evaluation = simulate([Truth(100, 0.8, 1.0)])
    evaluation.variants = evaluation.variants[1:]
    selection = select_checkpoint(evaluation)
    assert selection.variant is None
    assert "base model" in selection.reason


def test_without_references_the_last_checkpoint_that_follows_prompts_is_selected(raise_alarms):
    """The best prompt adherence is that of a checkpoint that has learned nothing, so it cannot decide."""
    raise_alarms({})
    evaluation = simulate([Truth(100, 0.1, 1.0), Truth(200, 0.6, 0.98), Truth(300, 0.9, 0.5)])
    evaluation.references = None
    selection = select_checkpoint(evaluation)
    assert selection.variant.step == 200
    assert "fidelity cannot be determined" in selection.reason
    assert selection.fidelity is None
    assert selection.prompt_adherence is not None


def test_a_variant_that_lacks_prompts_is_not_selected(raise_alarms):
    """A few easy prompts would make it look good."""
    raise_alarms({})
    evaluation = simulate([Truth(100, 0.5, 1.0), Truth(200, 0.9, 1.0)])
    short = evaluation.variants[-1]
    for key in [key for key in short.reference_similarity if key.prompt_id in ("s0", "s1")]:
        del short.reference_similarity[key]
    selection = select_checkpoint(evaluation)
    assert selection.variant.step == 100
    assert [candidate.num_prompts for candidate in selection.candidates] == [24, 22]


def test_the_answer_is_plain_json():
    selection = select_checkpoint(simulate(overfitting_run()))
    answer = json.loads(json.dumps(selection.to_json()))
    assert answer["selected"] == selection.variant.name
    assert 0 < answer["quality"]["ci_low"] < answer["quality"]["ci_high"]
    assert answer["max_drift"]["value"] > 0
    assert [row["name"] for row in answer["variants"]] == [c.variant.name for c in selection.candidates]
    assert answer["variants"][0]["fidelity"]["level"] == 0.95
