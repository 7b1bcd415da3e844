"""The trainer's side of a tracker: start its process, report the steps, wait a bounded time at the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from lorakit.config.monitoring import TrackerConfig
from lorakit.core import platform, storage
from lorakit.training.run_records import RUN_FILE
from lorakit.training.trackers.record import is_complete, last_results

CLOSE_TIMEOUT = 10.0  # seconds that a finished run waits for its tracker
RESEND_TIMEOUT = 120.0  # seconds that a command which only sends waits for it
_DISTRIBUTED = ("RANK", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "TORCHELASTIC_", "ACCELERATE_")
TASK_VARIABLE = "LORAKIT_TRACKER"  # what the tracker's process is to do, as JSON
DONE = "done"  # the last line of a finished run


class TrackerProcess:
    """A tracker's process. Nothing here raises for it, and only `close` waits for it.

    As a context manager it is closed at the end of the block; after an exception it is left alone to send
    what it has, which takes at most a minute.
    """

    def __init__(self, config: TrackerConfig, run: Path, log: Callable[[str], None]) -> None:
        self.config, self.run, self.log = config, run, log
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._unwritten = b""
        if config.name == "none":
            return
        # -P: no file in the working folder may be imported as the tracker's library
        command = [sys.executable, "-P", "-m", "lorakit.training.trackers.worker"]
        # It is not one of the training's processes, though the environment of these says so.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_DISTRIBUTED)}
        # Not as arguments: some trackers send the command line of their process.
        task = {"config": config.model_dump(), "run": str(run.absolute()), "trainer": os.getpid()}
        environment[TASK_VARIABLE] = json.dumps(task)
        try:
            # In a group of its own: Ctrl-C reaches only the trainer, and one signal ends all of it.
            child = platform.start_in_own_group(command, env=environment, stdin=subprocess.PIPE, bufsize=0)
        except OSError as error:
            self.log(f"{config.name}: could not start ({error}); metrics.jsonl has everything")
            return
        assert child.stdin is not None
        self._child, self._pipe = child, child.stdin.fileno()
        platform.set_nonblocking(self._pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._close_pipe()

    def report(self, step: int) -> None:
        """Say that the run's files are complete up to `step`; if the pipe is full, a later step says so."""
        self._write(f"{step}\n".encode())

    def close(self, timeout: float | None = None) -> bool:
        """Let the tracker send the rest of a finished run, for at most `CLOSE_TIMEOUT` seconds, then end it.

        Logs where the results are. Returns True if the tracker has received everything, or there is none.
        """
        child, timeout = self._child, CLOSE_TIMEOUT if timeout is None else timeout
        if child is None:
            return self.config.name == "none"
        deadline = time.monotonic() + timeout
        line = f"{DONE}\n".encode()
        while self._pipe >= 0 and not self._write(line) and time.monotonic() < deadline:
            platform.wait_writable(self._pipe, max(0.0, min(0.1, deadline - time.monotonic())))
        self._close_pipe()
        self._child = None
        try:
            code = child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            platform.end_group(child, force=True)
            child.wait()
            self.log(
                f"{self.config.name}: not finished within {timeout:g} s, so it was ended; metrics.jsonl has"
                " everything, and the same command again sends the rest"
            )
            return False
        if code == 0 and (results := last_results(self.run, self.config.name)):
            self.log(f"{self.config.name}: {results}")
        return code == 0

    def _write(self, line: bytes) -> bool:
        """Write a line if the pipe accepts it now; return False if it does not."""
        if self._pipe < 0:
            return False
        data = self._unwritten + line
        try:
            written = platform.write_available(self._pipe, data)
        except OSError:  # the tracker has ended, and has printed why
            self._close_pipe()
            return False
        if written:
            self._unwritten = data[written:]
        return written == len(data)

    def _close_pipe(self) -> None:
        if self._pipe >= 0 and self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        self._pipe = -1


def send_rest(config: TrackerConfig, run: Path, log: Callable[[str], None]) -> None:
    """Send what a tracker has not received of a finished run, in a bounded time."""
    if config.name == "none" or is_complete(config, run):
        return
    log(f"{config.name}: sending what it has not received of this run")
    tracker = TrackerProcess(config, run, log)
    tracker.report(storage.read_json(run / RUN_FILE)["step"])
    tracker.close(RESEND_TIMEOUT)
