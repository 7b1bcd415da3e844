"""The real command, `python -m lorakit train`, with everything that it starts; each part can be killed.

It is slower than `processes`, which forks trainers from a server, but only it has a command above the
trainers, a launcher between them, and a terminal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from lorakit.core import platform, storage
from lorakit.training import checkpoint
from tests import runs, tiny
from tests.reliability import tiny_training

HANG = 240.0  # seconds; each start imports torch in each process, and the machine may be busy
END = (
    60.0  # seconds that a step and its checkpoint may take on a busy machine; the test says how long it took
)


class Command:
    """One training run, started again and again by the same command."""

    def __init__(self, root: Path, num_processes: int = 1, **train: int) -> None:
        self.num_processes, self.run, self.output = num_processes, root / "run", root / "output.txt"
        data = root / "data"
        if not data.exists():
            runs.make_dataset(data, 4)
        settings = {"steps": 60, "batch_size": 1, "save_every": 20, "precision": "fp32"} | train
        self.recipe = runs.make_recipe(
            root / "recipe.json",
            tiny.tiny_folder("sd3-no-t5"),
            data,
            self.run,
            train=settings,
            adapter={"rank": 2, "alpha": 2, "targets": tiny_training.BASES[tiny_training.DIT]},
        )
        self.words = [sys.executable, "-m", "lorakit", "train", str(self.recipe)]
        self.words += ["--num-processes", str(num_processes)]

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start the command; its output goes to a file."""
        with open(self.output, "wb") as output:
            return subprocess.Popen(
                self.words, stderr=output, stdout=output, env=os.environ | environment, start_new_session=True
            )

    def finish(self) -> str:
        """Run the command to its end; returns its output."""
        process = self.start()
        try:
            code = process.wait(HANG)
        finally:
            end_all(process.pid)
        assert code == 0, self.printed()
        return self.printed()

    def printed(self) -> str:
        """What the last start has printed."""
        return self.output.read_text(errors="replace")

    def last_line(self) -> str:
        """The last line that it printed."""
        return self.printed().strip().splitlines()[-1]

    def wait_until(self, process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
        """Wait for something of a running command."""
        until = time.monotonic() + HANG
        while not reached():
            assert process.poll() is None, f"it ended before: {self.printed()}"
            assert time.monotonic() < until, f"it hangs: {self.printed()}"
            time.sleep(0.005)

    def steps(self) -> int:
        """The last step in metrics.jsonl."""
        with contextlib.suppress(ValueError, KeyError):
            return runs.steps_logged(self.run)
        return 0

    def wait_for_steps(self, process: subprocess.Popen[bytes], count: int = 2) -> None:
        """Wait until this start of the command has taken some steps."""
        trainers: list[int] = []

        def trains() -> bool:
            with contextlib.suppress(Exception):
                beat = storage.read_json(self.run / "heartbeat.json")
                own = beat["pid"] in [child.pid for child in descendants(process.pid)]
                if own and beat["phase"] == "train":
                    trainers[:] = trainers or [self.steps()]
                    return self.steps() >= trainers[0] + count
            return False

        self.wait_until(process, trains)

    def record(self) -> dict[str, object]:
        """The content of run.json."""
        return dict(storage.read_json(self.run / "run.json"))

    def saved_step(self) -> int:
        """The newest complete checkpoint; 0 without one."""
        return max(tiny_training.committed(self.run), default=0)

    def result(self) -> tuple[bytes, list[dict[str, object]], list[int]]:
        """What must be equal however often it was killed."""
        rows = storage.read_jsonl(self.run / "metrics.jsonl", torn_tail=True)
        rows = [{k: v for k, v in row.items() if k != "step_seconds"} for row in rows]
        return (
            (self.run / "adapter.safetensors").read_bytes(),
            rows,
            checkpoint.checkpoint_steps(self.run)[-1:],
        )


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below a process."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def trainers(pid: int) -> list[psutil.Process]:
    """The training processes below a process."""
    return [child for child in descendants(pid) if "lorakit.training" in _words(child)]


def launchers(pid: int) -> list[psutil.Process]:
    """The launcher of several training processes below a command."""
    return [child for child in descendants(pid) if "lorakit.training.launcher" in _words(child)]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def kill(part: str, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Kill the command, its launcher, or the last of its training processes with SIGKILL.

    A part that has not started yet is the command. Returns all processes of the command, with itself.
    """
    every = [psutil.Process(process.pid), *descendants(process.pid)]
    kinds = {"command": every[:1], "launcher": launchers(process.pid), "trainer": trainers(process.pid)}
    os.kill((kinds[part] or every)[-1 if kinds[part] else 0].pid, signal.SIGKILL)
    return every


def wait_for_end(every: list[psutil.Process], process: subprocess.Popen[bytes] | None = None) -> float:
    """Wait until all of these processes have ended; returns the seconds."""
    began = time.monotonic()
    waiter = threading.Thread(target=process.wait, daemon=True) if process else None
    if waiter:
        waiter.start()  # or the command stays a zombie
    while alive := [each for each in every if platform.is_process_alive(each.pid) and each.is_running()]:
        if time.monotonic() - began > END:
            for each in alive:
                each.kill()
            raise AssertionError(f"still running: {[each.pid for each in alive]}")
        time.sleep(0.02)
    return time.monotonic() - began


def end_all(pid: int) -> None:
    """Kill a command and all that it has started, after a failed test."""
    for process in [*descendants(pid)]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            os.kill(pid, signal.SIGKILL)
