"""Class leakage, diversity, drift budget and the gap of the validation loss, each at and beyond its limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation
from tests.evaluation.simulated import BASE_FIDELITY, REFERENCE_FIDELITY, Truth, simulate

SOUND = Truth(100, fidelity=0.7, prompt_adherence=1.0)


def find(evaluation: Evaluation, name: str) -> Alarm | None:
    limit = alarms.drift_limit(evaluation, None)
    found = alarms.find_alarms(evaluation, evaluation.adapter_variants[0], limit)
    return next((alarm for alarm in found if alarm.name == name), None)


def with_class_prompts(leakage: float) -> Evaluation:
    """An adapter whose class images come `leakage` of the way to the references."""
    evaluation, rng = simulate([SOUND]), np.random.default_rng(0)
    evaluation.prompts = [
        replace(prompt, kind="class") if prompt.kind == "unrelated" else prompt
        for prompt in evaluation.prompts
    ]
    for variant in evaluation.variants:
        share = 0.0 if variant is evaluation.base else leakage
        value = BASE_FIDELITY + share * (REFERENCE_FIDELITY - BASE_FIDELITY)
        for prompt in evaluation.prompts_of_role("class"):
            for seed in prompt.seeds:
                row = value + 0.02 * rng.normal(size=len(evaluation.references.units))
                variant.reference_similarity[SampleKey(prompt.id, seed)] = row.tolist()
    return evaluation


@pytest.mark.parametrize(("leakage", "level"), [(0.0, None), (0.15, None), (0.4, "warning"), (0.9, "alarm")])
def test_a_class_that_becomes_the_subject_is_a_warning_and_then_an_alarm(leakage, level):
    alarm = find(with_class_prompts(leakage), "class_leakage")
    assert (alarm.level if alarm else None) == level
    if alarm:
        assert alarm.value.mean == pytest.approx(leakage, abs=0.1)
        assert "show the subject" in alarm.message


def test_prompts_of_another_thing_are_not_the_class():
    assert find(simulate([SOUND]), "class_leakage") is None


@pytest.mark.parametrize(
    ("diversity", "level"), [(1.0, None), (0.8, None), (0.67, "warning"), (0.4, "alarm")]
)
def test_low_diversity_has_a_grade_by_its_interval_over_prompts(diversity, level):
    alarm = find(simulate([Truth(100, 0.7, 1.0, diversity=diversity)], noise=2.0), "low_diversity")
    assert (alarm.level if alarm else None) == level
    if alarm:
        assert alarm.value.ci_low < alarm.value.mean < alarm.value.ci_high


def test_images_of_a_subject_need_not_be_more_diverse_than_its_references():
    evaluation = simulate([Truth(100, 0.7, 1.0)])
    for variant in evaluation.variants:
        width = 0.6 if variant is evaluation.base else 0.28  # 1 - mean cosine of the references is .3
        variant.per_prompt["diversity"] = {p.id: width for p in evaluation.prompts_of_role("subject")}
    assert find(evaluation, "low_diversity") is None


@pytest.mark.parametrize("num_seeds", [2, 4, 8])
def test_the_drift_budget_does_not_depend_on_the_number_of_seeds(num_seeds):
    """The mean distance over pairs of seeds is the same for any number of them."""
    rng = np.random.default_rng(num_seeds)
    evaluation = simulate([SOUND])
    others = evaluation.prompts_of_role("unrelated")
    distances = rng.normal(0.3, 0.1 / num_seeds, len(others))
    evaluation.base.per_prompt["diversity"] |= {p.id: d for p, d in zip(others, distances, strict=True)}
    assert alarms.drift_limit(evaluation, None).value == pytest.approx(0.3, abs=0.03)


def test_with_one_seed_the_drift_budget_is_estimated_from_the_distance_between_prompts():
    evaluation = simulate([SOUND])
    evaluation.base.per_prompt.pop("diversity")
    evaluation.base.set_metrics["prompt_distance"] = 0.8
    limit = alarms.drift_limit(evaluation, None)
    assert limit.value == pytest.approx(0.28)
    assert "estimated" in limit.source


def with_losses(held_out: float, trained: float, count: int) -> Evaluation:
    evaluation, rng = simulate([SOUND]), np.random.default_rng(count)
    base = rng.uniform(0.4, 0.8, (2, count))
    evaluation.base.losses = {"validation": base[0].tolist(), "train": base[1].tolist()}
    after = base * (1 + np.array([[held_out], [trained]])) + 0.002 * rng.normal(size=(2, count))
    evaluation.adapter_variants[0].losses = {"validation": after[0].tolist(), "train": after[1].tolist()}
    return evaluation


@pytest.mark.parametrize(
    ("held_out", "trained", "count", "level"),
    [
        (0.05, -0.1, 4, "warning"),
        (0.05, -0.1, 8, "alarm"),
        (-0.02, -0.1, 8, None),
        (0.05, 0.05, 8, None),  # worse everywhere is another fault
        (0.0, -0.1, 8, None),
        (0.05, -0.1, 2, None),
    ],
)
def test_a_loss_that_rises_on_held_out_images_only_is_overfitting(held_out, trained, count, level):
    alarm = find(with_losses(held_out, trained, count), "overfitting")
    assert (alarm.level if alarm else None) == level
    if alarm:
        assert "5 % above" in alarm.message
        assert "10 % below" in alarm.message
