"""Several processes: the loss curve of one, one checkpoint for all, and all end when one does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.models import families
from lorakit.training import checkpoint
from lorakit.training.flat_parameters import FlatParameters
from lorakit.training.step import TrainerState, TrainingStep
from tests import runs, tiny
from tests.training import two_processes
from tests.training.process_pairs import join, run_both

LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--cpu",
    "--num_processes",
    "2",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
HALVES = {"steps": 12, "batch_size": 2, "accumulate": 1, "save_every": 4, "precision": "fp32"}


def recipe(folder: Path, data: Path, **train: int) -> Path:
    return runs.make_recipe(
        folder / "r.yaml", tiny.tiny_folder("sd35"), data, folder / "run", train=HALVES | train
    )


def launch(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, "-m", "lorakit.training", str(file)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """The folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(recipe(folder, data))
    assert done.returncode == 0, done.stderr
    assert "steps of 4" in done.stderr
    return folder / "run"


def test_two_processes_have_the_loss_curve_of_one(data, two, tmp_path):
    one = runs.train(recipe(tmp_path, data, accumulate=2))
    losses = [[row["loss"] for row in storage.read_jsonl(run / "metrics.jsonl")] for run in (one, two)]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_a_run_of_two_processes_goes_on_with_one(data, two, tmp_path):
    """The same samples in every step; only sums are rounded in another order."""
    run = tmp_path / "run"
    shutil.copytree(two, run)
    for step in (8, 12):
        shutil.rmtree(checkpoint.step_folder(run, step))
    record = storage.read_json(run / "run.json")
    storage.write_json(run / "run.json", record | {"status": "interrupted", "checkpoint_step": 4})
    runs.train(recipe(tmp_path, data, accumulate=2))
    assert "the same samples" in (run / "log.txt").read_text()
    losses = [[row["loss"] for row in storage.read_jsonl(one / "metrics.jsonl")] for one in (run, two)]
    assert losses[0][:4] == losses[1][:4]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert storage.read_json(run / "run.json")["changes"][0]["step"] == 4


def _reduce(rank: int, port: int, out: Path) -> None:
    """Reduce the gradients of one process of two, each with the gradient of one expert."""
    from accelerate import Accelerator

    join(rank, port)
    step = TrainingStep.__new__(TrainingStep)
    step.accelerator, step.state = Accelerator(cpu=True), TrainerState()
    step.session = SimpleNamespace(family=families.get_family("wan"))
    step.recipe = Recipe(base="b", dataset="d", out="o", optimizer={"max_grad_norm": 100.0})
    experts = [(name, torch.nn.Parameter(torch.zeros(2))) for name in ("high", "low", "neither")]
    step.parameters = FlatParameters(experts, network_of=lambda name: name)
    experts[rank][1].grad = torch.tensor([2.0, 4.0]) * (rank + 1)
    step.parameters.add_gradients()
    result = step.reduce_and_clip(torch.tensor(float(rank)))
    step.parameters.attach_gradients()
    optimized = {tensor.network: tensor.values.grad for tensor in step.parameters.tensors}
    gradients = {name: None if grad is None else grad[:2].tolist() for name, grad in optimized.items()}
    storage.write_json(
        out / f"{rank}.json", {"loss": result.loss, "norm": result.grad_norm, "gradients": gradients}
    )


def test_processes_may_train_different_experts(tmp_path):
    """The noise levels of one process may be those of an expert that the other does not use at this step."""
    run_both(_reduce, tmp_path)
    first, second = (storage.read_json(tmp_path / f"{rank}.json") for rank in range(2))
    assert first == second
    assert first["gradients"] == {"high": [1.0, 2.0], "low": [2.0, 4.0], "neither": None}
    assert first["loss"] == 0.5
    assert first["norm"] == pytest.approx(5.0)


def _ended_soon(run: Path, ended: float) -> bool:
    """True if all had ended half a minute after the last step, and its checkpoint is there."""
    return ended - (run / "metrics.jsonl").stat().st_mtime < 30 and checkpoint.checkpoint_steps(run) == [4]


def _train(rank: int, port: int, fault: str | None, file: Path) -> None:
    """Train in one process of two, the second perhaps with a fault; its output goes beside the recipe."""
    join(rank, port)
    output = os.open(file.with_name(f"output-{rank}"), os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 2)
    sys.exit(two_processes.main(fault, str(file)))


def test_one_killed_process_ends_all_soon_and_the_run_resumes_to_the_same_bytes(data, two, tmp_path):
    file, run = recipe(tmp_path, data), tmp_path / "run"
    command = [*TORCHRUN, "-m", "tests.training.two_processes", "kill", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert _ended_soon(run, time.time())
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    # the other prints why it stops, unless the launcher ended it first
    assert "another process of this run has ended" in done.stderr or "closing signal" in done.stderr
    assert run_both(_train, None, file) == [0, 0]
    assert "resuming from step 4" in file.with_name("output-0").read_text()
    assert (run / "adapter.safetensors").read_bytes() == (two / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "cause"), [("refuse", "a fault of the second"), ("crash", "ZeroDivisionError: a bug")]
)
def test_without_a_launcher_the_other_process_ends_by_itself(data, tmp_path, fault, cause):
    file = recipe(tmp_path, data)
    codes = run_both(_train, fault, file)
    assert _ended_soon(tmp_path / "run", time.time())
    assert all(code is not None and code > 0 for code in codes), codes
    first, second = (file.with_name(f"output-{rank}").read_text() for rank in range(2))
    assert "another process of this run has ended" in first
    assert cause in second


def test_an_overflow_of_one_process_shrinks_the_loss_scale_of_both(data, tmp_path):
    files = [recipe(tmp_path / name, data, precision="fp16") for name in ("plain", "overflow")]
    assert run_both(_train, None, files[0]) == [0, 0]
    assert run_both(_train, "overflow", files[1]) == [0, 0]
    plain, shrunk = (storage.read_jsonl(file.parent / "run/metrics.jsonl") for file in files)
    assert [row["loss_scale"] for row in shrunk] == [2.0**16] * 5 + [2.0**14] * 7
    assert [row["loss"] for row in shrunk] == pytest.approx([row["loss"] for row in plain], rel=1e-3)
    saved = checkpoint.latest_valid_checkpoint(tmp_path / "overflow/run").checkpoint
    assert saved.state["skipped_steps"] == []
