"""Several processes: the loss curve of one, one commit for all, and all end when one does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorakit import checkpoint, storage
from tests import runs, tiny

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
        [*LAUNCH, "-m", "lorakit.train", str(file)], capture_output=True, text=True, timeout=300
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


def test_processes_may_train_different_experts(data, tmp_path):
    """At a step, the noise levels of one process may be those of an expert that the other has no share in."""
    base, train = tiny.tiny_folder("wan-2.2"), {**HALVES, "steps": 4, "batch_size": 1}
    two = runs.make_recipe(tmp_path / "two.yaml", base, data, tmp_path / "two", train=train)
    done = launch(two)
    assert done.returncode == 0, done.stderr
    train["accumulate"] = 2
    one = runs.train(runs.make_recipe(tmp_path / "one.yaml", base, data, tmp_path / "one", train=train))
    losses, norms = (
        [[row[key] for row in storage.read_jsonl(run / "metrics.jsonl")] for run in (one, tmp_path / "two")]
        for key in ("loss", "grad_norm")
    )
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("fault", ["kill", "refuse", "crash"])
def test_91_one_process_ending_ends_all_soon_and_the_run_goes_on_to_the_same_bytes(
    data, two, tmp_path, fault
):
    file = recipe(tmp_path, data)
    command = [*TORCHRUN, "-m", "tests.ranks", fault, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ended = time.time()
    assert done.returncode != 0
    run = tmp_path / "run"
    assert ended - (run / "metrics.jsonl").stat().st_mtime < 30
    cause = {"kill": "SIGKILL", "refuse": "a fault of the second", "crash": "ZeroDivisionError: a bug"}
    assert cause[fault] in done.stderr
    assert "another process of this run has ended" in done.stderr
    assert checkpoint.steps(run) == [4]
    if fault == "kill":
        again = launch(file)
        assert again.returncode == 0, again.stderr
        assert "going on from step 4" in again.stderr
        assert (run / "adapter.safetensors").read_bytes() == (two / "adapter.safetensors").read_bytes()
