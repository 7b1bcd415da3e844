"""Several processes: the loss curve of one, one commit for all, and all end when one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorakit import checkpoint, families, storage
from lorakit.recipe import Recipe
from lorakit.trainer import Trainer
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


def _reduced(rank: int, port: int, out: Path) -> None:
    """One process of two, each with the gradient of an expert of its own and of none."""
    from accelerate import Accelerator

    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    made = Trainer.__new__(Trainer)
    made.accelerator = Accelerator(cpu=True)
    made.made = SimpleNamespace(family=families.by_name("wan"))
    made.recipe = Recipe(base="b", dataset="d", out="o", optimizer={"clip": 100.0})
    made.parameters = [(name, torch.nn.Parameter(torch.zeros(2))) for name in ("high", "low", "neither")]
    made.parameters[rank][1].grad = torch.tensor([2.0, 4.0]) * (rank + 1)
    norm, loss = made._reduce(torch.tensor(float(rank)))
    found = {name: None if p.grad is None else p.grad.tolist() for name, p in made.parameters}
    storage.write_json(out / f"{rank}.json", {"loss": loss, "norm": norm, "gradients": found})


def test_processes_may_train_different_experts(tmp_path):
    """At a step, the noise levels of one process may be those of an expert that the other has no share in."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [runs._CONTEXT.Process(target=_reduced, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(200)
    first, second = (storage.read_json(tmp_path / f"{rank}.json") for rank in range(2))
    assert first == second
    assert first["gradients"] == {"high": [1.0, 2.0], "low": [2.0, 4.0], "neither": None}
    assert first["loss"] == 0.5
    assert first["norm"] == pytest.approx(5.0)


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
    # the other says why it stops, unless the launcher was quicker to end it
    assert "another process of this run has ended" in done.stderr or "closing signal" in done.stderr
    assert checkpoint.steps(run) == [4]
    if fault == "kill":
        again = launch(file)
        assert again.returncode == 0, again.stderr
        assert "going on from step 4" in again.stderr
        assert (run / "adapter.safetensors").read_bytes() == (two / "adapter.safetensors").read_bytes()
