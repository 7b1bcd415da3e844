from __future__ import annotations

import io
import re

import pytest

from lorakit.core import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def visible(text: str) -> str:
    """The text without colours and other terminal controls."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock that advances by 2 s at each look."""
    now = iter(range(0, 10_000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    monkeypatch.delenv(progress.QUIET_VARIABLE, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (60, "1:00"), (3599, "59:59"), (3723, "1:02:03"), (-5, "0 s")],
)
def test_durations(seconds, text):
    assert progress.format_duration(seconds) == text


def test_a_terminal_shows_one_bar_drawn_again_with_the_time_left(slow_clock):
    stream = Terminal()
    with progress.Progress("train", 4, stream=stream) as bar:
        for done in range(1, 5):
            bar.update(done, f"loss {done}")
    assert stream.getvalue().count("\n") == 1
    drawn = [line for line in visible(stream.getvalue()).replace("\n", "").split("\r") if line]
    assert len(drawn) == 4
    assert all(len(line) <= 79 for line in drawn)
    assert re.match(r"train ━+╺?━* +2/4  loss 2 .*left$", drawn[1].strip())


def test_no_color_draws_without_colours(slow_clock, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with progress.Progress("train", 4, stream=stream) as bar:
        bar.update(2)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|38;[0-9;]+)m", stream.getvalue())


def test_a_narrow_terminal_gets_no_second_line(slow_clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    with progress.Progress("a long label", 1000, stream=stream) as bar:
        bar.update(500, "a note that does not fit")
    assert stream.getvalue().count("\n") == 1
    assert len(visible(stream.getvalue()).strip("\r\n")) <= 29


def test_a_line_is_printed_above_an_open_bar(slow_clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.Progress("train", 4) as bar:
        bar.update(1)
        progress.print_line("saved step 1")
        bar.update(2)
    assert "\r\x1b[2Ksaved step 1\n" in stream.getvalue()
    assert re.search(r"saved step 1\n\rtrain .* 1/4 ", visible(stream.getvalue()))
    progress.print_line("done")
    assert stream.getvalue().endswith("\ndone\n")


def test_a_bar_within_a_bar_gives_the_line_back(slow_clock):
    stream = Terminal()
    with progress.Progress("train", 2, stream=stream) as bar:
        bar.update(1)
        with progress.Progress("validation", 1, stream=stream) as inner:
            inner.update(1)
        bar.update(2)
    assert stream.getvalue().count("\n") == 1
    drawn = [line.split()[0] for line in visible(stream.getvalue()).split("\r") if line.strip()]
    assert drawn == ["train", "validation", "train", "train"]


def test_without_a_terminal_the_lines_are_few_and_plain(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    monkeypatch.delenv(progress.QUIET_VARIABLE, raising=False)
    stream = io.StringIO()
    for _ in progress.track_progress(range(100), "photos", 100):
        pass
    with progress.Progress("photos", 100, stream=stream) as bar:
        for done in range(100):
            bar.update(done + 1)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 40
    assert all("\x1b" not in line for line in lines)


def test_listeners_get_the_label_the_counts_and_the_seconds_left(slow_clock):
    calls = []
    with (
        progress.progress_listener(lambda *values: calls.append(values)),
        progress.Progress("latents", 3, quiet=True) as bar,
    ):
        bar.update(1)
    assert [call[:3] for call in calls] == [("latents", 0, 3), ("latents", 1, 3)]
    assert calls[1][3] > 0


def test_quiet_prints_nothing_and_a_closed_stream_is_survived(monkeypatch):
    stream = Terminal()
    with progress.Progress("x", 3, quiet=True, stream=stream) as bar:
        bar.update(3)
    assert stream.getvalue() == ""
    monkeypatch.setenv(progress.QUIET_VARIABLE, "1")
    with progress.Progress("x", 3, stream=stream) as bar:
        bar.update(3)
    assert stream.getvalue() == ""
    monkeypatch.delenv(progress.QUIET_VARIABLE)
    monkeypatch.setattr(progress, "TERMINAL_INTERVAL_S", 0)
    closed = Terminal()
    bar = progress.Progress("x", 3, stream=closed)
    closed.close()
    bar.update(3)
    bar.update(3)
    bar.close()
