"""Each alarm is raised by its fault, and by sound checkpoints no more often than stated."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.score_table import Evaluation, VariantScores
from tests.evaluation.simulated import Truth, simulate

NEAREST = "nearest_train_similarity"
SOUND = Truth(100, fidelity=0.7, prompt_adherence=1.0)


def alarm_names(truth: Truth, seed: int = 0, **options) -> set[str]:
    evaluation = simulate([truth], seed=seed, **options)
    limit = alarms.drift_limit(evaluation, None)
    return {alarm.name for alarm in alarms.find_alarms(evaluation, evaluation.adapter_variants[0], limit)}


def copy_alarms(evaluation: Evaluation, variant: VariantScores) -> list[Alarm]:
    return [alarm for alarm in alarms.find_alarms(evaluation, variant) if alarm.name == "copied_images"]


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (SOUND, set()),
        (Truth(100, 0.8, 0.9, copies=0.3), {"copied_images"}),
        (Truth(100, 1.5, 0.9), {"memorization"}),
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
    evaluations = [
        simulate([Truth(100, 0.7, 1.0, copies=share)], seed=seed)
        for share in (0.03, 0.20)
        for seed in range(40)
    ]
    raised = [bool(copy_alarms(e, e.adapter_variants[0])) for e in evaluations]
    assert np.mean(raised[:40]) <= 0.05
    assert np.mean(raised[40:]) >= 0.95


def test_images_as_similar_to_the_training_images_as_the_base_models_are_no_copies():
    """Prompts that describe training images make the base model's images as similar as the adapter's."""
    evaluation = simulate([Truth(100, 0.7, 1.0, copies=0.4)])
    base, variant = evaluation.base, evaluation.adapter_variants[0]
    base.scores[NEAREST] = dict(variant.scores[NEAREST])
    assert not copy_alarms(evaluation, variant)


def test_the_examples_of_copies_are_the_most_similar_images():
    evaluation = simulate([Truth(100, 0.7, 1.0, copies=0.5)])
    variant = evaluation.adapter_variants[0]
    scores = variant.scores[NEAREST]
    worst = max(key for key in scores if key.prompt_id.startswith("s"))
    scores[worst] = 0.999
    (alarm,) = copy_alarms(evaluation, variant)
    assert alarm.examples[0] == worst
    assert len(alarm.examples) == alarms.MAX_EXAMPLES
    assert all(scores[key] > evaluation.copy_threshold.similarity for key in alarm.examples)


def test_sscd_above_one_half_is_a_copy():
    evaluation = simulate([SOUND])
    variant = evaluation.adapter_variants[0]
    variant.scores["sscd"] = dict.fromkeys(variant.files, 0.2)
    assert not alarms.find_alarms(evaluation, variant)
    variant.scores["sscd"]["s3", 1] = 0.62
    (alarm,) = alarms.find_alarms(evaluation, variant)
    assert (alarm.name, alarm.examples) == ("copied_images", [("s3", 1)])
    assert "SSCD" in alarm.message


def test_the_drift_limit_is_the_change_by_another_seed_or_the_requested_value():
    evaluation = simulate([SOUND])
    diversity = evaluation.prompt_means(evaluation.base, "diversity", evaluation.prompts_of_role("unrelated"))
    assert alarms.drift_limit(evaluation, None).value == pytest.approx(diversity.mean())
    assert alarms.drift_limit(evaluation, 0.1) == alarms.DriftLimit(0.1, "as requested")
    evaluation.base.set_metrics["prompt_distance"] = 5 * diversity.mean() + 0.5
    assert alarms.drift_limit(evaluation, None).value == pytest.approx(diversity.mean() + 0.1)
    assert alarms.drift_limit(simulate([SOUND], unrelated=0), None) is None


def test_drift_is_compared_by_the_upper_end_of_its_interval():
    """A mean below the limit is not enough: the interval must be below it."""
    evaluation = simulate([Truth(100, 0.7, 1.0, drift=0.08)], unrelated=6)
    variant = evaluation.adapter_variants[0]
    drift = evaluation.interval(variant, "drift", evaluation.prompts_of_role("unrelated"))
    limit = alarms.DriftLimit((drift.mean + drift.ci_high) / 2, "as requested")
    assert [alarm.name for alarm in alarms.find_alarms(evaluation, variant, limit)] == ["drift"]
    higher = alarms.DriftLimit(drift.ci_high * 1.01, "as requested")
    assert not alarms.find_alarms(evaluation, variant, higher)


def test_without_base_images_and_references_there_is_no_alarm():
    evaluation = simulate([Truth(100, 0.9, 0.1, copies=0.9, drift=0.9, diversity=0.1)])
    evaluation.copy_threshold = evaluation.references = None
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
    }
