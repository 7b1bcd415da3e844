"""Watchdog: reports a run that makes no progress, with the stack of every thread."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import format_duration

TIMEOUT_VARIABLE = "LORAKIT_WATCHDOG_SECONDS"  # seconds without progress; 0 disables the watchdog
DEFAULT_TIMEOUT = 600.0


def timeout_seconds() -> float:
    """Return the seconds without progress after which the watchdog reports; the default is ten minutes."""
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT))
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of seconds", where=TIMEOUT_VARIABLE) from None


class Watchdog:
    """Context manager that writes all stacks to `file` when `pat` is not called for `seconds`.

    It only reports and stops nothing: the cause may be a slow disk or another process.
    """

    def __init__(self, file: Path, say: Callable[[str], None], seconds: float) -> None:
        self.file, self.say, self.seconds = file, say, seconds
        self._moved = time.monotonic()
        self._where = "start"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def pat(self, label: str, done: int, total: int, left: float) -> None:
        """Note progress; a `progress.Listener`."""
        self._moved, self._where = time.monotonic(), f"{label} {done}/{total}"

    def __enter__(self) -> Watchdog:
        self._moved = time.monotonic()
        if self.seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        reported = -1.0
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            moved = self._moved
            if time.monotonic() - moved >= self.seconds and moved != reported:
                reported = moved
                self._dump()

    def _dump(self) -> None:
        with storage.open_append(self.file) as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.say(
            f"no progress for {format_duration(self.seconds)} ({self._where}); the stacks of all threads are"
            f" in {self.file}. The run continues by itself if it can; press Ctrl-C twice to stop it, and run"
            " the same command to resume"
        )
