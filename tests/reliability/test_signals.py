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
from tests.long_tier import long
from tests.reliability import checks, instants, processes, tiny_training
from tests.reliability.tiny_training import DIT

LIMIT = 30.0  # seconds; a loaded machine may be slow, a hang is longer
PHASES = {
    "load": ("append", "log.txt"),
    "cache": ("write", "cache/latents"),
    "step": ("append", "metrics.jsonl"),
    "sample": ("write", "samples/"),
    "save": ("write", "checkpoints/"),
    "rename": ("rename", "checkpoints/step"),
}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize("number", CODES, ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_stops_training_in_each_phase(recorded, phase, number):
    training, reference, _ = recorded(DIT, phase != "step")  # a look appends rows too
    training.delete_run()
    if phase == "cache":
        shutil.rmtree(training.cache)
    began = time.monotonic()
    code, output = processes.train(training, processes.signal_at, *PHASES[phase], number)
    assert time.monotonic() - began < LIMIT
    assert code == CODES[number], output
    assert "run the same command again" in output
    assert "Traceback" not in output
    assert storage.read_json(training.run / "run.json")["status"] == "interrupted"
    if phase in ("step", "save", "rename"):
        assert tiny_training.committed(training.run)[-1] == runs.steps_logged(training.run)
    assert checks.finish(training, reference) == []


def test_a_second_signal_stops_training_at_once(recorded):
    training, reference, _ = recorded(DIT, False)
    training.delete_run()
    code, output = processes.train(
        training, processes.signal_at, "append", "metrics.jsonl", signal.SIGTERM, True
    )
    assert code == 143, output
    assert not (training.run / "checkpoints").exists()  # the first one alone would have committed
    assert checks.finish(training, reference) == []


@pytest.mark.parametrize("number", CODES, ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_every_process_of_a_service_is_one_signal(recorded, number):
    """It comes twice: from the service manager, and from the command, which forwards its own."""
    training, reference, _ = recorded(DIT, False)
    training.delete_run()
    code, output = processes.train(
        training, processes.signal_at, "append", "metrics.jsonl", number, True, 0.05
    )
    assert code == CODES[number], output
    assert tiny_training.committed(training.run)[-1] == runs.steps_logged(training.run)
    assert checks.finish(training, reference) == []


@long
def test_a_signal_at_any_operation_loses_nothing(recorded, monkeypatch):
    """In this process, at every eleventh operation of a run."""
    training, reference, seen = recorded(DIT, True)
    for instant in [i for i in seen if not instants.at_the_end(i)][4::11]:
        training.delete_run()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "io_hook", _terminate_at(training.state, instant.number))
            code, output = training.train()
        assert code in (143, 0), f"{instant}: {output}"  # 0: it came when the last step was done
        assert code == 143 or "done in" in output
        assert "Traceback" not in output, f"{instant}: {output}"
        assert checks.finish(training, reference, at_least=instant.committed) == [], instant


def _terminate_at(root: Path, number: int):
    seen = -1

    def operation(name: str, path: Path) -> None:
        nonlocal seen
        seen += path.is_relative_to(root)
        if seen == number:
            seen += 1
            os.kill(os.getpid(), signal.SIGTERM)

    return operation
