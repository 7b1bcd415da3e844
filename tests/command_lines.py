"""Run the command lines of the guides in `examples/` in the current folder.

Every line goes through lorakit's own command line. The training process that `lorakit train` would start runs
in this process instead, because most of a start is imports, and the kill is an exception that nothing
catches. With `LORAKIT_SLOW_TESTS=1` a process is started, and killed by SIGKILL.
"""

from __future__ import annotations

import gc
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import lorakit.training.train
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import launch, storage
from tests import runs

ROOT = Path(__file__).parent.parent
SLOW = bool(os.environ.get("LORAKIT_SLOW_TESTS"))
KILLED_AT = 3
"""Training steps before the kill; every second one has a checkpoint."""
FEWER = ["train.steps=5", "train.save_every=2", "train.batch_size=1", "train.accumulate=1"]
"""Overrides of every recipe that shorten the training."""


def of_page(name: str) -> list[list[str]]:
    """Return the command lines of a guide in order, each as its words after `lorakit`."""
    text = (ROOT / f"examples/{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]
    return [line[1:] for line in lines if line[0] == "lorakit"]


def run(line: Sequence[str]) -> None:
    """Run `lorakit LINE`, which must succeed."""
    assert main.main(line) == 0, shlex.join(["lorakit", *line])


def play(
    lines: Sequence[Sequence[str]],
    more: Mapping[str, Sequence[str]],
    *,
    launched: bool = SLOW,
    compared: bool = True,
) -> None:
    """Run the lines in order, each with the words that `more` adds to its command (`train`, `prepare`, ...).

    Each training is killed in the middle and its line run again; with `compared`, the bytes must equal those
    of a training that was not interrupted.
    """
    for line in lines:
        whole = [*line, *more.get(line[1] if line[0] == "data" else line[0], ())]
        if line[0] == "train":
            train_killed_and_resumed(whole, launched=launched, compared=compared)
        else:
            run(whole)


def train_killed_and_resumed(line: Sequence[str], *, launched: bool, compared: bool = True) -> None:
    """Run a `train` line, kill the training, and run the line again; see `play`."""
    folder = recipe.load_recipe(line[1], list(line[2:])).out
    _train_and_kill(line, folder, launched)
    status = storage.read_json(folder / "run.json")["status"]
    assert status == ("interrupted" if launched else "running")  # the command corrects it
    _train(line, launched)
    assert storage.read_json(folder / "run.json")["status"] == "done"
    (step,) = re.findall(r"resuming from step (\d+)", (folder / "log.txt").read_text())
    assert int(step) in ((2, 4) if launched else (2,))
    if compared:
        other = folder.with_name(f"{folder.name}-whole")
        _train([*line, f"out={other}"], launched)
        assert "resuming" not in (other / "log.txt").read_text()
        assert (other / "adapter.safetensors").read_bytes() == (folder / "adapter.safetensors").read_bytes()


def _train(line: Sequence[str], launched: bool) -> None:
    if launched:
        run(line)
        return
    with mock.patch.object(launch, "run_training", _train_here):
        run(line)


def _train_here(arguments: list[str], *_: object) -> int:
    """Run a training command in this process; freeze its objects, or every garbage collection takes 0.7 s."""
    gc.collect()
    gc.freeze()
    return lorakit.training.train.main(arguments[arguments.index("lorakit.training") + 1 :])


def _train_and_kill(line: Sequence[str], folder: Path, launched: bool) -> None:
    if not launched:
        with runs.killed_at(KILLED_AT):
            _train(line, launched)
        return
    child = subprocess.Popen([sys.executable, "-m", "lorakit", *line])
    until = time.monotonic() + 300
    while runs.steps_logged(folder) < KILLED_AT:
        assert child.poll() is None, "it ended before it could be killed"
        if time.monotonic() > until:
            child.terminate()
            raise AssertionError("it hangs")
        time.sleep(0.002)
    os.kill(storage.read_json(folder / "heartbeat.json")["pid"], signal.SIGKILL)
    assert child.wait(60) != 0
