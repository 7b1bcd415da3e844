"""Each alarm is raised by its fault, and by sound checkpoints no more often than stated."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores
from tests.evaluation.simulated import COPY, NO_COPY, Truth, simulate

SOUND = Truth(100, fidelity=0.7, prompt_adherence=1.0)


def alarm_names(truth: Truth, seed: int = 0, **options) -> set[str]:
    evaluation = simulate([truth], seed=seed, **options)
    limit = alarms.drift_limit(evaluation, None)
    return {alarm.name for alarm in alarms.find_alarms(evaluation, evaluation.adapter_variants[0], limit)}


def find(evaluation: Evaluation, name: str, variant: VariantScores | None = None) -> Alarm | None:
    """The alarm of a name of a variant, by default of the last one."""
    limit = alarms.drift_limit(evaluation, None)
    found = alarms.find_alarms(evaluation, variant or evaluation.adapter_variants[-1], limit)
    return next((alarm for alarm in found if alarm.name == name), None)


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (SOUND, set()),
        (Truth(100, 0.8, 0.9, copies=0.3), {"copied_images"}),
        (Truth(100, 1.5, 0.9), {"memorization"}),  # a warning
        (Truth(100, 0.8, 0.9, diversity=0.5), {"low_diversity"}),
        (Truth(100, 0.8, 0.9, drift=0.4), {"drift"}),
        (Truth(100, 0.5, 0.2), {"prompt_ignored"}),
        (Truth(100, 0.0, 1.0, drift=0.0), {"no_effect"}),
    ],
)
def test_each_fault_raises_its_alarm_and_no_other(truth, expected):
    noise = 0.1 if "no_effect" in expected else 1.0  # full noise alone would be an effect
    assert alarm_names(truth, noise=noise) == expected


def test_sound_checkpoints_raise_few_false_alarms():
    """Two hundred sound checkpoints, with as many copies as chance explains."""
    raised = [bool(alarm_names(SOUND, seed)) for seed in range(200)]
    assert np.mean(raised) < 0.05


def test_copies_at_the_rate_of_chance_raise_no_alarm_and_many_more_do():
    levels = {}
    for share in (0.005, 0.03, 0.2):
        evaluations = [simulate([Truth(100, 0.7, 1.0, copies=share)], seed=seed) for seed in range(40)]
        raised = [find(evaluation, "copied_images") for evaluation in evaluations]
        levels[share] = [alarm.level if alarm else None for alarm in raised]
    assert levels[0.005].count(None) >= 36
    assert levels[0.03].count("alarm") <= 2
    assert levels[0.2].count("alarm") >= 38


def test_few_copies_are_a_warning_that_names_the_training_image():
    evaluation = simulate([Truth(100, 0.7, 1.0)], seed=1)
    variant = evaluation.adapter_variants[0]
    variant.training_matches = dict.fromkeys(variant.training_matches, NO_COPY)
    for prompt in range(4):
        variant.training_matches[SampleKey(f"s{prompt}", 0)] = COPY
    alarm = find(evaluation, "copied_images")
    assert alarm.level == "warning"
    assert "4 of 96 images are near-identical to training images: 3.png (4)" in alarm.message


def test_the_base_models_own_copies_are_no_fault_of_the_adapter():
    """Prompts that describe training images make the base model's images as similar as the adapter's."""
    evaluation = simulate([Truth(100, 0.7, 1.0, copies=0.3)])
    evaluation.base.training_matches = dict(evaluation.adapter_variants[0].training_matches)
    assert find(evaluation, "copied_images") is None


def test_the_examples_of_copies_are_copies_one_for_each_prompt():
    evaluation = simulate([Truth(100, 0.7, 1.0, copies=0.5)])
    alarm = find(evaluation, "copied_images")
    matches = evaluation.adapter_variants[0].training_matches
    assert len(alarm.examples) == alarms.MAX_EXAMPLES
    assert len({key.prompt_id for key in alarm.examples}) == alarms.MAX_EXAMPLES
    assert all(matches[key] == COPY for key in alarm.examples)


def test_a_copy_detector_finds_copies_too():
    evaluation = simulate([SOUND])
    variant = evaluation.adapter_variants[0]
    variant.scores["sscd"] = dict.fromkeys(variant.files, 0.2)
    assert find(evaluation, "copied_images") is None
    variant.scores["sscd"] |= {
        SampleKey(f"s{prompt}", seed): 0.62 for prompt in range(6) for seed in range(3)
    }
    assert find(evaluation, "copied_images").level == "alarm"


def test_the_drift_limit_is_the_change_by_another_seed_or_the_requested_value():
    evaluation = simulate([SOUND])
    diversity = evaluation.prompt_means(evaluation.base, "diversity", evaluation.prompts_of_role("unrelated"))
    assert alarms.drift_limit(evaluation, None).value == pytest.approx(diversity.mean())
    assert alarms.drift_limit(evaluation, 0.1) == alarms.DriftLimit(0.1, "as requested")
    evaluation.base.set_metrics["prompt_distance"] = 5 * diversity.mean() + 0.5
    assert alarms.drift_limit(evaluation, None).value == pytest.approx(diversity.mean() + 0.1)
    assert alarms.drift_limit(simulate([SOUND], unrelated=0), None) is None


@pytest.mark.parametrize(
    ("share_of_interval", "level"), [(1.2, None), (0.1, None), (-0.3, "warning"), (-3.0, "alarm")]
)
def test_drift_above_its_limit_is_a_warning_and_beyond_chance_an_alarm(share_of_interval, level):
    evaluation = simulate([Truth(100, 0.7, 1.0, drift=0.08)], unrelated=6)
    variant = evaluation.adapter_variants[0]
    drift = evaluation.interval(variant, "drift", evaluation.prompts_of_role("unrelated"))
    limit = drift.mean + share_of_interval * (drift.ci_high - drift.mean)
    found = alarms.find_alarms(evaluation, variant, alarms.DriftLimit(limit, "as requested"))
    assert [(alarm.name, alarm.level) for alarm in found] == ([("drift", level)] if level else [])


def test_without_base_images_and_references_there_is_no_alarm():
    evaluation = simulate([Truth(100, 0.9, 0.1, copies=0.9, drift=0.9, diversity=0.1)])
    evaluation.copy_scale = evaluation.references = None
    evaluation.variants = evaluation.variants[1:]
    assert alarms.find_alarms(evaluation, evaluation.variants[0]) == []


@pytest.mark.parametrize("name", alarms.ADVICE)
def test_every_alarm_has_a_title_and_advice(name):
    alarm = Alarm(name, "a message")
    assert alarm.title.lower().replace(" ", "_") == name
    assert alarm.advice
    assert alarm.to_json() == {
        "name": name,
        "level": "alarm",
        "message": "a message",
        "value": None,
        "threshold": None,
        "examples": [],
    }
