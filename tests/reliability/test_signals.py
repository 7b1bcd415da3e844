"""SIGTERM and SIGINT at any moment: commit or abandon, stop with 143 or 130, and go on later."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from lorakit.core import storage
from tests import runs
from tests.reliability import checks, instants, processes, world
from tests.reliability.world import DIT

LIMIT = 30.0  # seconds; a loaded machine may be slow, a hang is longer
PHASES = {
    "load": ("append", "log.txt"),
    "cache": ("write", "cache/"),
    "step": ("append", "metrics.jsonl"),
    "sample": ("write", "samples/"),
    "save": ("write", "checkpoints/"),
    "rename": ("rename", "checkpoints/step"),
}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize("number", CODES, ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("phase", PHASES)
def test_83_a_signal_stops_it_in_each_phase(recorded, phase, number):
    made, reference, _ = recorded(DIT, phase != "step")  # a look appends rows too
    made.forget()
    if phase == "cache":
        shutil.rmtree(made.cache)
    began = time.monotonic()
    code, said = processes.train(made, processes.signal_at, *PHASES[phase], number)
    assert time.monotonic() - began < LIMIT
    assert code == CODES[number], said
    assert "give the same command again" in said
    assert "Traceback" not in said
    assert storage.read_json(made.run / "run.json")["status"] == "interrupted"
    if phase in ("step", "save", "rename"):
        assert world.committed(made.run)[-1] == runs.steps_logged(made.run)
    assert checks.finish(made, reference) == []


def test_83_a_second_signal_stops_it_at_once(recorded):
    made, reference, _ = recorded(DIT, False)
    made.forget()
    code, said = processes.train(made, processes.signal_at, "append", "metrics.jsonl", signal.SIGTERM, True)
    assert code == 143, said
    assert not (made.run / "checkpoints").exists()  # the first one alone would have committed
    assert checks.finish(made, reference) == []


def test_83_a_signal_at_any_operation_loses_nothing(recorded, monkeypatch):
    """In this process, at every eleventh operation of a run."""
    made, reference, seen = recorded(DIT, True)
    for instant in [i for i in seen if not instants.at_the_end(i)][4::11]:
        made.forget()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "io_hook", _terminate_at(made.state, instant.number))
            code, said = made.train()
        assert code in (143, 0), f"{instant}: {said}"  # 0: it came when the last step was done
        assert code == 143 or "done in" in said
        assert "Traceback" not in said, f"{instant}: {said}"
        assert checks.finish(made, reference, at_least=instant.committed) == [], instant


def _terminate_at(root: Path, number: int):
    seen = -1

    def operation(name: str, path: Path) -> None:
        nonlocal seen
        seen += path.is_relative_to(root)
        if seen == number:
            seen += 1
            os.kill(os.getpid(), signal.SIGTERM)

    return operation
