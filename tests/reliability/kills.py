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
from tests.reliability.world import STEPS, Finished, World


@dataclass
class Chain:
    """One run, killed again and again before it may finish. `moments`: what it was at when it died."""

    problems: list[str] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)
    in_a_row: int = 0


def chain(
    made: World, reference: Finished, kills: int, draw: random.Random, life: float, *, cached: bool = True
) -> Chain:
    """Start a run, kill it at a random moment of its `life` (seconds), start it again, ... and let the last
    start finish. Without `cached` it begins with an empty cache, and the first kill comes early."""
    made.forget()
    if not cached:
        shutil.rmtree(made.cache, ignore_errors=True)
    done = Chain()
    while done.in_a_row < kills and not done.problems:
        part = 0.4 if not cached and not done.moments else 1.0 - 0.6 * runs.steps_logged(made.run) / STEPS
        process = processes.start(made)
        process.join(draw.uniform(0, life * part))
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            done.in_a_row += 1
            done.moments.append(moment(made))
        else:  # it was finished before it could be killed: from the start once more
            done.problems += _problems(made, reference, process.exitcode)
            done.in_a_row = 0
            made.forget()
    process = processes.start(made)
    process.join(120)
    done.problems += _problems(made, reference, process.exitcode)
    return done


def _problems(made: World, reference: Finished, code: int | None) -> list[str]:
    if code:
        return [f"exit code {code}: {made.said.read_text(errors='replace')[-500:]}"]
    return made.mismatches(reference)


def moment(made: World) -> str:
    """What a killed run was at, as its heartbeat tells it."""
    beat = made.run / "heartbeat.json"
    if not beat.exists():
        return "start"
    phase = str(storage.read_json(beat)["phase"])
    return "samples" if phase.startswith("samples") else phase


def life(made: World) -> float:
    """Seconds that an undisturbed run takes in a process of its own; the second one, for with the first the
    server has to be started that these are forked from."""
    for _ in range(2):
        made.forget()
        began = time.monotonic()
        code, said = processes.train(made)
        assert code == 0, said
    return time.monotonic() - began
