"""SIGKILL at random moments, again and again, until the run is finished."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field

from lorakit.core import storage
from tests import runs
from tests.reliability import processes
from tests.reliability.tiny_training import STEPS, Finished, TinyTraining


@dataclass
class Chain:
    """One run, killed several times before it may finish. `moments`: its phase at each kill."""

    problems: list[str] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)
    in_a_row: int = 0


def chain(
    training: TinyTraining,
    reference: Finished,
    kills: int,
    draw: random.Random,
    life: float,
    *,
    cached: bool = True,
) -> Chain:
    """Start a run, kill it at a random moment of its `life` (seconds), start it again, ... and let the last
    start finish. Without `cached` it begins with an empty cache, and the first kill comes early."""
    training.delete_run()
    if not cached:
        shutil.rmtree(training.cache, ignore_errors=True)
    done = Chain()
    while done.in_a_row < kills and not done.problems:
        part = 0.4 if not cached and not done.moments else 1.0 - 0.6 * runs.steps_logged(training.run) / STEPS
        process = processes.start(training)
        process.join(draw.uniform(0, life * part))
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            done.in_a_row += 1
            done.moments.append(moment(training))
        else:  # it was finished before it could be killed: from the start once more
            done.problems += _problems(training, reference, process.exitcode)
            done.in_a_row = 0
            training.delete_run()
    process = processes.start(training)
    process.join(120)
    done.problems += _problems(training, reference, process.exitcode)
    return done


def _problems(training: TinyTraining, reference: Finished, code: int | None) -> list[str]:
    if code:
        return [f"exit code {code}: {training.output.read_text(errors='replace')[-500:]}"]
    return training.mismatches(reference)


def moment(training: TinyTraining) -> str:
    """The phase of a killed run, by its heartbeat."""
    beat = training.run / "heartbeat.json"
    if not beat.exists():
        return "start"
    return str(storage.read_json(beat)["phase"])


def life(training: TinyTraining) -> float:
    """Seconds that an undisturbed run takes in a process of its own; the second one, for with the first the
    server has to be started that these are forked from."""
    for _ in range(2):
        training.delete_run()
        began = time.monotonic()
        code, output = processes.train(training)
        assert code == 0, output
    return time.monotonic() - began
