"""Whole stories in command lines, as the pages of `examples/` tell them, played in the current folder.

Every line goes through lorakit's own command line. What `lorakit train` would then hand to `accelerate launch
-m lorakit.training` is given to that module's `main` in this process, for a launch is mostly imports, and the
kill is an exception that nothing catches. With `LORAKIT_LONG=1` it is launched, and the trainer dies by a
SIGKILL.
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
LONG = bool(os.environ.get("LORAKIT_LONG"))
KILLED_AT = 3
"""Steps that are done when it dies; every second one is committed."""
FEWER = ["train.steps=5", "train.save_every=2", "train.batch_size=1", "train.accumulate=1"]
"""What every recipe is told: settings of how much, not of what."""


def of_page(name: str) -> list[list[str]]:
    """The command lines of a page of `examples/`, in order, each as its words after `lorakit`."""
    text = (ROOT / f"examples/{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]
    return [line[1:] for line in lines if line[0] == "lorakit"]


def say(line: Sequence[str]) -> None:
    """`lorakit LINE`, which must succeed."""
    assert main.main(line) == 0, shlex.join(["lorakit", *line])


def play(
    lines: Sequence[Sequence[str]],
    more: Mapping[str, Sequence[str]],
    *,
    launched: bool = LONG,
    compared: bool = True,
) -> None:
    """Give the lines in order, and after each what `more` has for its command, such as `train` or `prepare`.

    Each training is killed in the middle and its line given again; `compared`, it ends in the same bytes as
    one that was left alone.
    """
    for line in lines:
        whole = [*line, *more.get(line[1] if line[0] == "data" else line[0], ())]
        if line[0] == "train":
            trained(whole, launched=launched, compared=compared)
        else:
            say(whole)


def trained(line: Sequence[str], *, launched: bool, compared: bool = True) -> None:
    """Give a `train` line, kill what it started, and give it again; see `play`."""
    run = recipe.load_recipe(line[1], list(line[2:])).out
    _killed(line, run, launched)
    assert storage.read_json(run / "run.json")["status"] == "running"
    _train(line, launched)
    assert storage.read_json(run / "run.json")["status"] == "done"
    (step,) = re.findall(r"going on from step (\d+)", (run / "log.txt").read_text())
    assert int(step) in ((2, 4) if launched else (2,))
    if compared:
        other = run.with_name(f"{run.name}-whole")
        _train([*line, f"out={other}"], launched)
        assert "going on" not in (other / "log.txt").read_text()
        assert (other / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def _train(line: Sequence[str], launched: bool) -> None:
    if launched:
        say(line)
        return
    with mock.patch.object(launch, "run", _here):
        say(line)


def _here(arguments: list[str]) -> int:
    """What `launch.command` made, without the launcher. What this process holds by now, libraries that were
    imported since its module began among it, is no garbage to look for at every stage."""
    gc.collect()
    gc.freeze()
    return lorakit.training.train.main(arguments[arguments.index("lorakit.training") + 1 :])


def _killed(line: Sequence[str], run: Path, launched: bool) -> None:
    if not launched:
        with runs.killed_at(KILLED_AT):
            _train(line, launched)
        return
    child = subprocess.Popen([sys.executable, "-m", "lorakit.cli.main", *line])
    until = time.monotonic() + 300
    while runs.steps_logged(run) < KILLED_AT:
        assert child.poll() is None, "it ended before it could be killed"
        if time.monotonic() > until:
            child.terminate()
            raise AssertionError("it hangs")
        time.sleep(0.002)
    os.kill(storage.read_json(run / "heartbeat.json")["pid"], signal.SIGKILL)
    assert child.wait(60) != 0
