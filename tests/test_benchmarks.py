"""The benchmarks run, and what they compare is the same training; their times are theirs to tell."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from lorakit.models.families.published_models import PublishedModel
from lorakit.models.memory import MemorySettings
from tests import tiny
from tests.benchmarks import (
    bases,
    evaluation_alarms,
    evaluation_statistics,
    gpu,
    prepare_again,
    results,
    start_up,
    step,
)
from tests.benchmarks.evaluation_population import SCENES, Population
from tests.benchmarks.evaluation_worlds import generated_features


def test_the_bare_floor_trains_as_lorakit_does():
    row = step.measure(step.Case("tiny-dit", batch_size=2), rounds=1, steps=2)
    assert row["loss_difference"] <= step.MAX_DIFFERENCE
    assert row["ratio"] > 0
    assert not step.passes([row | {"ratio": 1.03}])


def test_the_larger_bases_have_the_size_of_their_names(tmp_path):
    sizes = {name: bases.count_parameters(name, tmp_path) for name in ("unet-34m", "dit-36m")}
    assert 33e6 < sizes["unet-34m"] < 35e6
    assert 35e6 < sizes["dit-36m"] < 37e6


def test_the_script_for_gpus_runs_in_miniature(tmp_path):
    """All of it but the full size: setup, memory settings, acceleration, steps, launches, written results."""
    written: list[int] = []
    rows = gpu.run(
        tmp_path,
        lambda rows: written.append(len(rows)),
        device=torch.device("cpu"),
        miniature=True,
        keys=("sd15",),
        caps=False,
    )
    assert written == [1]
    assert "error" not in rows[0], rows
    assert rows[0]["step_seconds"] > 0
    assert rows[0]["launches"] > 100


def test_a_network_built_on_the_device_trains_on_random_latents_of_its_shapes(tmp_path):
    config = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32}
    config |= {"joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": (8, 12, 12)}
    config |= {"guidance_embeds": True}
    text = {"prompt_embeds": (6, 24), "pooled_prompt_embeds": (16,)}
    model = PublishedModel(
        "small", "flux1-dev", "flux1", "FluxTransformer2DModel", 64, (16, 8, 8), text, config
    )
    subject = gpu.Subject("flux1-dev", tiny.tiny_folder("flux1-dev"), model)
    row = gpu.measure(subject, tmp_path, torch.device("cpu"), MemorySettings(gradient_checkpointing=1.0), 1.0)
    assert row["steps"] >= 2
    assert row["memory"] == "checkpoint 1"


def test_results_are_written_as_table_plot_and_json_with_versions(tmp_path):
    rows = {
        "floor": [{"name": "a, b", "ratio": 1.01, "goal": 1.02}, {"name": "c", "ratio": 0.9, "extra": None}],
        "growth": [{"name": "prepare", "images": n, "peak_mb": 100.0 + n} for n in (10, 100)],
    }
    files = {file.name: file.read_text() for file in results.write(tmp_path, rows)}
    assert files.keys() == {"benchmarks.json", "benchmarks.md", "floor.svg", "growth.svg"}
    assert "| a, b | 1.01 | 1.02 | - |" in files["benchmarks.md"]
    assert json.loads(files["benchmarks.json"])["machine"]["versions"]["torch"] in torch.__version__
    for name in ("floor.svg", "growth.svg"):
        tree = ElementTree.fromstring(files[name])
        assert tree.tag.endswith("svg")
        assert len(list(tree.iter())) > 5


def test_a_trainer_that_takes_no_step_is_told_with_its_last_lines(tmp_path):
    command = [sys.executable, "-c", "print('no such base')"]
    contestant = start_up.Contestant("other", command, tmp_path / "out", text=b"| 1/1 ")
    with pytest.raises(RuntimeError, match="other took no step:\nno such base"):
        start_up.run_to_first_step(contestant, tmp_path)


def test_the_first_step_is_seen_in_the_output_and_its_process_ended(tmp_path):
    code = "import time; sum(range(10**7)); print('0%| 1/2 ', flush=True); time.sleep(60)"
    contestant = start_up.Contestant("other", [sys.executable, "-c", code], tmp_path / "out", text=b"| 1/2 ")
    figures = start_up.run_to_first_step(contestant, tmp_path)
    assert 0 < figures["cpu_seconds"] < 30
    assert figures["peak_mb"] > 1


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
