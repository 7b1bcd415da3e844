"""The tracker's process: `python -m lorakit.training.trackers.worker`.

It reads from stdin up to which step the run's files are complete, one number a line, and sends what it has
not sent yet. It ends with its stdin; what it could not send is sent by the next session.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lorakit.config.monitoring import TrackerConfig
from lorakit.core import platform, storage
from lorakit.core.errors import first_line
from lorakit.core.progress import print_line
from lorakit.training.run_records import LOG_FILE
from lorakit.training.trackers.process import DONE, TASK_VARIABLE
from lorakit.training.trackers.sender import RunMovedError, Sender

ORPHAN_TIMEOUT = 60.0  # seconds that a tracker may still send after its trainer has died
LOCK_FILE = ".tracker.lock"


class ReportedSteps:
    """The steps that the trainer reports; a thread reads them, so that a slow tracker blocks no pipe."""

    def __init__(self) -> None:
        self.step, self.done, self.ended = -1, False, False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            with self._changed:
                if line.strip() == DONE.encode():
                    self.done = True
                elif line.strip().isdigit():
                    self.step = int(line)
                self._changed.notify()
        self.end()

    def end(self) -> None:
        """Stop waiting for further steps."""
        with self._changed:
            self.ended = True
            self._changed.notify()

    def wait(self, after: int) -> int:
        """Wait for a step later than `after`, or the end; return the last step that was reported."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self.step > after)
            return self.step


def _exit_after_parent(trainer: int) -> None:
    """End this process some time after its trainer, even when the tracker's library never returns."""
    while platform.is_parent_alive(trainer):
        time.sleep(1)
    time.sleep(ORPHAN_TIMEOUT)
    os._exit(1)


@contextlib.contextmanager
def _only_sender(run: Path) -> Iterator[None]:
    """Wait until the tracker of an earlier session, which may still be sending, has ended."""
    while True:
        with storage.file_lock(run / LOCK_FILE) as held:
            if held:
                yield
                return
        time.sleep(0.2)


def _say(run: Path, text: str) -> None:
    """Print a line and append it to the run's log."""
    print_line(text)
    with contextlib.suppress(Exception):  # the disk may be full
        storage.append_text(run / LOG_FILE, text + "\n")


def send_run(config: TrackerConfig, run: Path, steps: ReportedSteps) -> int:
    """Send a run's steps as they are reported; return the exit code."""
    sender = Sender(config, run, lambda text: _say(run, f"{config.name}: {text}"))
    try:
        with _only_sender(run):
            sender.start()
            step = -1
            while True:
                step = steps.wait(step)
                sender.send(step)
                if steps.ended and step == steps.step:
                    break
            sender.finish(done=steps.done)
    except RunMovedError:
        return 1
    except Exception as error:  # a remote service may fail in any way; the run goes on
        reason = first_line(error) or type(error).__name__
        _say(run, f"{config.name}: could not {sender.action} ({reason}); metrics.jsonl has everything")
        return 1
    return 0


def main() -> int:
    """Run the tracker's process; return the exit code."""
    task = json.loads(os.environ.pop(TASK_VARIABLE))
    steps = ReportedSteps()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: steps.end())  # send what is known, then end
    threading.Thread(target=_exit_after_parent, args=(task["trainer"],), daemon=True).start()
    return send_run(TrackerConfig.model_validate(task["config"]), Path(task["run"]), steps)


if __name__ == "__main__":
    exit_code = main()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(exit_code)  # an exit hook of a tracker's library might hang
