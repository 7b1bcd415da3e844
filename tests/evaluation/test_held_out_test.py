"""The test for memorization is exact: by chance alone its p-values are uniform, for all variants together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorakit.data.prompts import Prompt
from lorakit.evaluation import alarms
from lorakit.evaluation.held_out_test import HeldOutTest, compare_with_held_out, smallest_p_value
from lorakit.evaluation.references import ReferenceTable, ReferenceUnit
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores

PROMPTS = [Prompt(f"s{i}", f"a sks {i}", f"a {i}", seeds=(0, 1)) for i in range(12)]


def simulate(
    seed: int, units: int = 12, held_out: int = 3, memorized: float = 0.0, variants: int = 1
) -> Evaluation:
    """References of one subject, and images that resemble each of them, the trained ones a little more."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(units, 24)) + 1.2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parts = tuple(ReferenceUnit((f"{i}.png",), i >= held_out) for i in range(units))
    evaluation = Evaluation("test", list(PROMPTS), [], ("sks",))
    evaluation.references = ReferenceTable(parts, vectors @ vectors.T)
    trained = np.arange(units) >= held_out
    for number in range(variants + 1):
        name = f"step-{number}" if number else BASE
        variant = VariantScores(name, number or None, 1.0)
        for prompt in PROMPTS:
            for one in prompt.seeds:
                image = rng.normal(size=24) + (1.2 if number else 0.2)
                if number and memorized:
                    image += memorized * 24 * vectors[rng.choice(np.flatnonzero(trained))]
                image /= np.linalg.norm(image)
                key = SampleKey(prompt.id, one)
                variant.reference_similarity[key] = (vectors @ image).tolist()
                variant.files[key] = f"{name}/{key.prompt_id}-{one}.png"
        evaluation.variants.append(variant)
    return evaluation


def run_test(evaluation: Evaluation) -> list[HeldOutTest]:
    found = compare_with_held_out(evaluation, evaluation.adapter_variants)
    return [test for tests in found.values() for test in tests]


@pytest.mark.parametrize(("units", "held_out", "variants"), [(12, 3, 1), (8, 2, 1), (12, 3, 5)])
def test_without_memorization_small_p_values_are_as_rare_as_they_say(units, held_out, variants):
    smallest = [
        min(t.p_value for t in run_test(simulate(seed, units, held_out, variants=variants)))
        for seed in range(150)
    ]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(smallest) <= level) <= level + 3 * math.sqrt(level * (1 - level) / 150)


def test_memorized_training_images_are_found_and_named():
    evaluations = [simulate(seed, memorized=1.0) for seed in range(20)]
    assert np.mean([run_test(evaluation)[0].p_value <= 0.05 for evaluation in evaluations]) >= 0.8
    alarm = next(
        alarm
        for evaluation in evaluations
        for alarm in alarms.find_alarms(evaluation, evaluation.adapter_variants[0])
        if alarm.name == "memorization" and alarm.level == "alarm"
    )
    assert "3 true images that were held out" in alarm.message
    assert "p = 0.0" in alarm.message


@pytest.mark.parametrize(
    ("units", "held_out", "expected"),
    [(12, 3, 1 / 220), (20, 4, 1 / 4845), (8, 0, 1.0), (8, 8, 1.0), (8, 1, 0.125)],
)
def test_the_smallest_p_value_is_one_over_the_number_of_choices(units, held_out, expected):
    table = simulate(0, units, held_out).references
    assert smallest_p_value(table, None) == pytest.approx(expected)


def test_every_choice_is_equally_likely_so_that_the_smallest_p_value_is_reached():
    evaluation = simulate(0, units=6, held_out=2)
    for variant in evaluation.adapter_variants:
        for key in variant.reference_similarity:
            variant.reference_similarity[key] = [0.1, 0.1, 0.9, 0.9, 0.9, 0.9]
    assert run_test(evaluation)[0].p_value == pytest.approx(1 / 15)


def test_without_held_out_references_or_a_base_model_there_is_no_test():
    assert run_test(simulate(0, held_out=0)) == []
    evaluation = simulate(0)
    evaluation.variants = evaluation.variants[1:]
    assert run_test(evaluation) == []
