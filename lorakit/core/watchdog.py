"""Says so when nothing moves, and where every thread stands, instead of a silent hang. Torch-free."""

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

TIMEOUT_VARIABLE = "LORAKIT_WATCHDOG"  # seconds of silence; 0 switches it off
DEFAULT_TIMEOUT = 600.0


def timeout_seconds() -> float:
    """Seconds of silence before the watchdog speaks: $LORAKIT_WATCHDOG, else ten minutes."""
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT))
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of seconds", where=TIMEOUT_VARIABLE) from None


class Watchdog:
    """While entered, watches that `pat` is called; after `seconds` without, the stacks go to `file`.

    It only tells: what hangs may be a slow disk or another process, and may come back.
    """

    def __init__(self, file: Path, say: Callable[[str], None], seconds: float) -> None:
        self.file, self.say, self.seconds = file, say, seconds
        self._moved = time.monotonic()
        self._where = "start"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def pat(self, label: str, done: int, total: int, left: float) -> None:
        """Something moved; a `progress.Listener`."""
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
        spoken_of = -1.0
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            moved = self._moved
            if time.monotonic() - moved >= self.seconds and moved != spoken_of:
                spoken_of = moved
                self._dump()

    def _dump(self) -> None:
        with storage.open_append(self.file) as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.say(
            f"nothing has moved for {format_duration(self.seconds)} ({self._where}); where every thread stands:"
            f" {self.file}. It goes on when that moves; Ctrl-C twice ends it, and the same command goes on"
        )
