"""Progress with the time left: a rewritten line on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TextIO, TypeVar

T = TypeVar("T")
PLAIN_INTERVAL_S = 10.0  # seconds between lines where no terminal is
TERMINAL_INTERVAL_S = 0.2
QUIET_VARIABLE = "LORAKIT_QUIET"  # how --quiet reaches the processes of a training


def format_duration(seconds: float) -> str:
    """1:02:03, 2:03 or 3 s."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


Listener = Callable[[str, int, int, float], None]
"""Told (label, done, total, seconds left) whenever something moves: heartbeats and watchdogs."""
_listeners: list[Listener] = []


@contextlib.contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every progress in this process for a while."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Progress:
    """Counts towards `total` from `start`; `update` prints when it is time to."""

    def __init__(
        self, label: str, total: int, *, start: int = 0, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self.label, self.total, self.start, self.done = label, total, start, start
        self.quiet = quiet or bool(os.environ.get(QUIET_VARIABLE))
        self.stream = stream or sys.stderr
        self.began = self.printed = time.monotonic()
        self.terminal = self.stream.isatty()
        self.wrote = False
        self._tell()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self.start) / max(1e-9, time.monotonic() - self.began)

    @property
    def left(self) -> float:
        """Seconds left at the mean rate so far."""
        return (self.total - self.done) / self.rate if self.done > self.start else 0.0

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` units of the total are finished."""
        self.done = done
        self._tell()
        now = time.monotonic()
        every = TERMINAL_INTERVAL_S if self.terminal else PLAIN_INTERVAL_S
        if not self.quiet and (now - self.printed >= every or (done >= self.total and self.wrote)):
            self.printed = now
            self._print(note)

    def _tell(self) -> None:
        for listener in _listeners:
            listener(self.label, self.done, self.total, self.left)

    def _print(self, note: str) -> None:
        speed = f"{self.rate:.1f}/s" if self.rate >= 1 else f"{1 / max(self.rate, 1e-9):.1f} s each"
        parts = [f"{self.label} {self.done}/{self.total}", note, speed, f"{format_duration(self.left)} left"]
        line = "  ".join(part for part in parts if part)
        self._write(f"\r\x1b[2K{line}" if self.terminal else f"{line}\n")
        self.wrote = True

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (BrokenPipeError, ValueError, OSError):
            self.quiet = True  # a closed terminal must not stop the work

    def close(self) -> None:
        """End the line."""
        if self.terminal and self.wrote and not self.quiet:
            self._write("\n")


def track_progress(
    items: Sequence[T] | Iterable[T], label: str, total: int, *, quiet: bool = False
) -> Iterator[T]:
    """Iterate over `items` with progress."""
    with Progress(label, total, quiet=quiet) as progress:
        for done, item in enumerate(items, 1):
            yield item
            progress.update(done)
