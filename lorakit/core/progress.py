"""Progress with the time left: a bar drawn by rich on a terminal, plain lines at intervals elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar

from lorakit.core.secret_text import mask_secrets
from lorakit.core.visible_text import escape_controls, escape_name

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
PLAIN_INTERVAL_S = 10.0  # seconds between lines without a terminal
TERMINAL_INTERVAL_S = 0.2
QUIET_VARIABLE = "LORAKIT_QUIET"  # passes --quiet on to the training processes


def format_duration(seconds: float) -> str:
    """Format a duration as 1:02:03, 2:03 or 3 s."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


Listener = Callable[[str, int, int, float], None]
"""Called with (label, done, total, seconds left) at every progress: heartbeats and watchdogs."""
_listeners: list[Listener] = []
_open_bars: list[Progress] = []  # bars whose line on the terminal has no end yet
_silent = 0  # number of open `silent` blocks


@contextlib.contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Call `listener` at every progress of this process within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def silent(active: bool = True) -> Iterator[None]:
    """Print neither progress nor lines within the block; listeners are still called."""
    global _silent
    _silent += active
    try:
        yield
    finally:
        _silent -= active


def print_line(text: str) -> None:
    """Print a line on stderr, above a bar that is being drawn there; a closed terminal is ignored."""
    if _silent:
        return
    with contextlib.suppress(OSError, ValueError):
        if _open_bars:
            _open_bars[-1].erase()
        print(escape_controls(mask_secrets(text)), file=sys.stderr, flush=True)
        if _open_bars:
            _open_bars[-1].redraw()


class Progress:
    """Count units of work from `start` to `total`, and print the progress at intervals."""

    def __init__(
        self, label: str, total: int, *, start: int = 0, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self.label = escape_name(label)
        self.total, self.start, self.done = total, start, start
        self.quiet = quiet or bool(_silent or os.environ.get(QUIET_VARIABLE))
        self.stream = stream or sys.stderr
        self.started_at = self.printed_at = time.monotonic()
        self.terminal = self.stream.isatty()
        self.has_printed = False
        self._console: Console | None = None
        self._text = ""
        self._notify_listeners()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.close()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.start) / max(1e-9, time.monotonic() - self.started_at)

    @property
    def seconds_left(self) -> float:
        """Estimate at the mean rate so far; 0 before the first unit is done."""
        return (self.total - self.done) / self.rate if self.done > self.start else 0.0

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` units of the total are finished."""
        self.done = done
        self._notify_listeners()
        now = time.monotonic()
        interval = TERMINAL_INTERVAL_S if self.terminal else PLAIN_INTERVAL_S
        is_due = now - self.printed_at >= interval or (done >= self.total and self.has_printed)
        if is_due and not self.quiet:
            self.printed_at = now
            self._print(note)

    def _notify_listeners(self) -> None:
        for listener in _listeners:
            listener(self.label, self.done, self.total, self.seconds_left)

    def _print(self, note: str) -> None:
        rate = f"{self.rate:.1f}/s" if self.rate >= 1 else f"{1 / max(self.rate, 1e-9):.1f} s each"
        parts = [f"{self.done}/{self.total}", note, rate, f"{format_duration(self.seconds_left)} left"]
        text = escape_name("  ".join(part for part in parts if part))
        try:
            if self.terminal:
                self._text = text
                self.redraw()
            else:
                self.stream.write(f"{self.label} {text}\n")
                self.stream.flush()
        except (OSError, ValueError):
            self.quiet = True  # a closed terminal must not stop the work
        self.has_printed = True

    def redraw(self) -> None:
        """Draw the bar over the one before; no cursor is hidden and no thread runs, in case of a crash."""
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.segment import Segments
        from rich.table import Table
        from rich.text import Text

        if self._console is None:
            self._console = Console(file=self.stream, force_terminal=True, highlight=False)
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, min_width=4)
        grid.add_column(no_wrap=True, overflow="ellipsis", justify="right")
        bar = ProgressBar(total=max(1, self.total), completed=self.done)
        grid.add_row(Text(self.label, style="bold"), bar, Text(self._text))
        options = self._console.options.update(width=max(20, self._console.width - 1))
        line = self._console.render_lines(grid, options)[0]
        self.erase()
        self._console.print(Segments(line), end="")
        self.stream.flush()
        if self not in _open_bars:
            _open_bars.append(self)

    def erase(self) -> None:
        """Erase the bar from the terminal."""
        from rich.control import Control
        from rich.segment import ControlType

        if self._console is not None:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))

    def close(self) -> None:
        """End the bar's line, whose last state stays; a bar within another gives its line back to it."""
        if self in _open_bars:
            _open_bars.remove(self)
            with contextlib.suppress(OSError, ValueError):
                if _open_bars:
                    self.erase()
                    _open_bars[-1].redraw()
                else:
                    self.stream.write("\n")
                    self.stream.flush()


def track_progress(
    items: Sequence[T] | Iterable[T], label: str, total: int, *, quiet: bool = False
) -> Iterator[T]:
    """Yield the items and print the progress."""
    with Progress(label, total, quiet=quiet) as progress:
        for done, item in enumerate(items, 1):
            yield item
            progress.update(done)
