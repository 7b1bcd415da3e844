"""The benchmarks run, and what they compare is the same training; their times are theirs to tell."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import evaluation_alarms, evaluation_statistics, prepare_again, step
from tests.benchmarks.evaluation_population import SCENES, Population
from tests.benchmarks.evaluation_worlds import generated_features


def test_the_bare_floor_trains_as_lorakit_does():
    row = step.measure("tiny-dit", rounds=1, steps=2)
    assert row["loss_difference"] <= 1e-5
    assert row["ratio"] > 0


def test_a_small_folder_prepared_again_gives_the_same_bytes_and_the_time_of_each_phase():
    results = prepare_again.measure(20)
    assert results["same_bytes"]
    assert results["first"]["images"] == results["again"]["images"] == 20
    assert {"read the manifest", "read captions", "report"} <= results["again"]["phases"].keys()
    assert "CPU seconds" in prepare_again.format_report(results)


def random_population() -> Population:
    """Features without rendering: two clouds of unit vectors."""
    rng = np.random.default_rng(0)
    clouds = []
    for center in np.eye(2, 24):
        vectors = center + rng.normal(0, 0.12, (SCENES, 24))
        clouds.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return Population(*clouds)


def test_a_small_run_of_the_evaluation_statistics_gives_plausible_figures():
    results = evaluation_statistics.measure(random_population(), 0.01, ("overfit",))
    assert min(results["means"].values()) > 0.7
    assert min(results["shares"].values()) > 0.7
    assert np.mean([row["selection"] for row in results["regret"]["24x4"].values()]) < 5
    assert abs(results["bias"]["24x4"]["quality"]) < 5
    assert 0.3 < results["race"]["images"] < 1
    assert "regret 24x4" in evaluation_statistics.format_report(results)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("means", {"mean 8x4": 0.85}),
        ("shares", {"3% 8x4": 0.995}),
        ("bias", {"24x4": {"quality": 0.7, "fidelity": 0.0, "prompt_adherence": 0.0}}),
        ("regret", {"8x2": {"flat": {"selection": 1.6, "largest": 1.0}}}),
        ("race", {"images": 0.9, "loss": 0.0}),
    ],
)
def test_a_figure_beyond_its_goal_fails_the_benchmark(part, change):
    good = {
        "means": {"mean 8x4": 0.95, "skewed 8x4": 0.88},
        "shares": {"3% 8x4": 0.96},
        "fidelity": {"5 references 8x4": {"fidelity": 0.95, "difference": 0.96, "undetermined": 0.2}},
        "regret": {"8x2": {"flat": {"selection": 1.2, "largest": 1.0}}},
        "bias": {"24x4": {"quality": -0.3, "fidelity": 0.2, "prompt_adherence": 0.1}},
        "race": {"images": 0.6, "loss": 0.1},
    }
    assert evaluation_statistics.passes(good)
    assert not evaluation_statistics.passes(good | {part: change})


def test_ideal_adapters_pass_and_copies_are_found_in_a_small_run_of_the_alarms():
    world = generated_features()
    cases = [
        evaluation_alarms.Case(world, 8, duplicate, fault)
        for fault in ("ideal", "copies", "overcooked")
        for duplicate in (False, True)
    ]
    rows = [evaluation_alarms.measure_case(case, 3) for case in cases]
    assert evaluation_alarms.passes(rows)
    assert all(row["share"] == 1 for row in rows)
    assert "copied_images (alarm) 3" in evaluation_alarms.format_report(rows)
    assert not evaluation_alarms.passes([rows[0] | {"share": 0.94}])
    assert not evaluation_alarms.passes([rows[2] | {"share": 0.89}])
