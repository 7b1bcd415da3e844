from __future__ import annotations

import io

import pytest

from lorakit.core import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (60, "1:00"), (3599, "59:59"), (3723, "1:02:03"), (-5, "0 s")],
)
def test_durations(seconds, text):
    assert progress.format_duration(seconds) == text


def test_a_terminal_sees_one_line_rewritten_with_the_time_left(monkeypatch):
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    monkeypatch.delenv(progress.QUIET_VARIABLE, raising=False)
    stream = Terminal()
    with progress.Progress("train", 4, stream=stream) as shown:
        for done in range(1, 5):
            shown.update(done, f"loss {done}")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "train 2/4  loss 2" in text
    assert "left" in text


def test_elsewhere_lines_are_few_and_plain(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    monkeypatch.delenv(progress.QUIET_VARIABLE, raising=False)
    stream = io.StringIO()
    for _ in progress.track_progress(range(100), "photos", 100):
        pass
    with progress.Progress("photos", 100, stream=stream) as shown:
        for done in range(100):
            shown.update(done + 1)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 40
    assert all("\x1b" not in line for line in lines)


def test_quiet_prints_nothing_and_a_closed_stream_is_survived(monkeypatch):
    stream = Terminal()
    with progress.Progress("x", 3, quiet=True, stream=stream) as shown:
        shown.update(3)
    monkeypatch.setattr(progress, "TERMINAL_INTERVAL_S", 0)
    closed = Terminal()
    shown = progress.Progress("x", 3, stream=closed)
    closed.close()
    shown.terminal = True
    shown.update(3)
    shown.close()
    assert stream.getvalue() == ""
