"""The whole training on small real data: resume, signals, neutrality of sampling, failures."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, NumericError
from lorakit.training import checkpoint
from lorakit.training.step import TrainingStep
from tests import runs
from tests.long_tier import long

BASES = ("tiny-unet", "tiny-dit")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each base."""
    finished = {}
    for base in BASES:
        folder = tmp_path_factory.mktemp(base)
        finished[base] = runs.train(runs.make_recipe(folder / "r.yaml", base, data, folder / "run"))
    return finished


def wait_for_step(process, run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while process.is_alive() and runs.steps_logged(run) < step:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("base", BASES)
def test_killed_at_random_moments_the_adapter_is_the_same_file(base, data, finished, tmp_path):
    file = runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run")
    random_moments = random.Random(time.time_ns())
    killed = []
    for _ in range(2):
        process = runs.start(file)
        logged = runs.steps_logged(tmp_path / "run")
        wait_for_step(process, tmp_path / "run", random_moments.randint(logged, 11))
        time.sleep(random_moments.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed.append(runs.steps_logged(tmp_path / "run"))
    process = runs.start(file)
    process.join()
    assert process.exitcode == 0
    files = [folder / "adapter.safetensors" for folder in (tmp_path / "run", finished[base])]
    assert files[0].read_bytes() == files[1].read_bytes(), f"differs after kills at steps {killed}"


def test_sampling_changes_no_byte(data, finished, tmp_path):
    prompts = runs.make_prompts(tmp_path / "p.jsonl")
    run = runs.train(
        runs.make_recipe(
            tmp_path / "r.yaml",
            "tiny-dit",
            data,
            tmp_path / "run",
            samples={"prompts": str(prompts), "every": 5, "num_inference_steps": 2},
            validate={"every": 5},
        )
    )
    assert sorted(p.name for p in (run / "samples").glob("step-*")) == [
        "step-00000000",
        "step-00000005",
        "step-00000010",
        "step-00000012",
    ]
    assert len(list((run / "samples/step-00000005").glob("*.png"))) == 3
    files = [folder / "adapter.safetensors" for folder in (run, finished["tiny-dit"])]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_terminated_run_saves_a_checkpoint_and_is_interrupted(data, tmp_path):
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-unet", data, tmp_path / "run")
    process = runs.start(file, "train.steps=5000")
    wait_for_step(process, tmp_path / "run", 2)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 143
    step = runs.steps_logged(tmp_path / "run")
    assert checkpoint.checkpoint_steps(tmp_path / "run")[-1] == step
    assert storage.read_json(tmp_path / "run/run.json")["status"] == "interrupted"


@long
def test_a_run_terminated_while_sampling_stops_within_seconds_and_loses_nothing(data, finished, tmp_path):
    prompts = runs.make_prompts(tmp_path / "p.jsonl")
    samples = {"prompts": str(prompts), "every": 5, "num_inference_steps": 400}
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", samples=samples)
    process = runs.start(file, "samples.every=5")
    wait_for_step(process, tmp_path / "run", 5)  # step 0 is sampled slowly before
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    start = time.monotonic()
    process.join(60)
    assert process.exitcode == 143
    assert time.monotonic() - start < 20
    assert checkpoint.checkpoint_steps(tmp_path / "run")[-1] == runs.steps_logged(tmp_path / "run")
    run = runs.train(file, "samples.num_inference_steps=1")
    assert (run / "samples/step-00000005/samples.json").exists()
    files = [folder / "adapter.safetensors" for folder in (run, finished["tiny-dit"])]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_optimizer_state_is_saved_in_8_bits(finished):
    latest = checkpoint.latest_valid_checkpoint(finished["tiny-dit"])
    assert not latest.problems
    saved = latest.checkpoint
    moments = {k: v for k, v in saved.optimizer.items() if k.endswith(("|state1", "|state2"))}
    assert len(moments) == 2 * len(saved.adapter)
    assert {v.dtype for v in moments.values()} == {torch.uint8}


def test_another_setting_is_refused_with_the_difference(data, finished, tmp_path):
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", data, finished["tiny-dit"], optimizer={"lr": 2e-3}
    )
    with pytest.raises(ConfigError, match=r"optimizer\.lr: 0\.001 -> 0\.002"):
        runs.train(file)


def test_a_changed_image_is_refused_by_name(tmp_path):
    data = runs.make_dataset(tmp_path / "data", 3)
    image = data / "1.png"
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(DataError, match="changed") as caught:
        runs.train(runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run"))
    assert "1.png" in str(caught.value)


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over(data, finished, tmp_path):
    run = finished["tiny-unet"]
    copy = tmp_path / "run"
    finished_file = run / "adapter.safetensors"
    for file in run.rglob("*"):
        if file.is_file() and file != finished_file:
            storage.copy_file(file, copy / file.relative_to(run))
    storage.write_json(copy / "run.json", storage.read_json(copy / "run.json") | {"status": "running"})
    recipe_file = runs.make_recipe(tmp_path / "r.yaml", "tiny-unet", data, copy)
    newest = copy / "checkpoints/step-00000012/adapter.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4] + b"\0\0\0\1")
    runs.train(recipe_file)  # falls back to step 8 and ends in the same bytes
    assert (copy / "adapter.safetensors").read_bytes() == finished_file.read_bytes()
    assert "falling back" in (copy / "log.txt").read_text()
    for folder in (copy / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    storage.write_json(copy / "run.json", storage.read_json(copy / "run.json") | {"status": "running"})
    with pytest.raises(DataError, match="cannot be resumed from any checkpoint"):
        runs.train(recipe_file)


def test_a_step_with_non_finite_gradients_never_reaches_the_weights(data, tmp_path, monkeypatch):
    plain = TrainingStep.sample_losses
    before: list[dict[str, torch.Tensor]] = []

    def poisoned(self, samples, uniforms):
        loss = plain(self, samples, uniforms)
        if self.state.step == 3:
            before.append({n: p.detach().clone() for n, p in self.parameters.named})
            return loss * float("nan")
        if self.state.step == 4 and len(before) < 9:
            assert all(torch.equal(before[0][n], p) for n, p in self.parameters.named)
        return loss

    monkeypatch.setattr(TrainingStep, "sample_losses", poisoned)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run")
    run = runs.train(file, "train.steps=6", "optimizer.lr=1e-2")
    assert "step 3: loss or gradient not finite" in (run / "log.txt").read_text()
    assert checkpoint.latest_valid_checkpoint(run).checkpoint.state["skipped_steps"] == [3]
    monkeypatch.setattr(TrainingStep, "sample_losses", lambda *a: plain(*a) * float("nan"))
    with pytest.raises(NumericError, match="11 steps"):
        runs.train(file, "train.steps=20", f"out={tmp_path / 'other'}")


def test_training_lowers_the_loss_of_held_out_images_of_the_same_kind(data, tmp_path):
    """The images are noise, which the base has never seen; an adapter learns that much in 40 steps."""
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", validate={"fraction": 0.34, "every": 20}
    )
    run = runs.train(file, "train.steps=40", "optimizer.lr=1e-2", "train.save_every=100")
    rows = storage.read_jsonl(run / "metrics.jsonl")
    held_out = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 20, 40]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert held_out[-1] < held_out[0]
    metadata = adapters.read_adapter_metadata(run / "adapter.safetensors")
    assert (metadata["rank"], metadata["alpha"], metadata["step"]) == (4, 8.0, 40)
