"""The watchdog speaks when nothing moves, and only then."""

from __future__ import annotations

import threading
import time

import pytest

from lorakit.core import progress, watchdog
from lorakit.core.errors import ConfigError


def test_without_progress_the_stack_of_every_thread_is_written(tmp_path):
    said: list[str] = []
    spoken = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        spoken.set()

    def somewhere_deep() -> None:
        assert spoken.wait(30)

    with (
        watchdog.Watchdog(tmp_path / "stacks.txt", say, 0.2) as dog,
        progress.progress_listener(dog.pat),
        progress.Progress("latents", 7, quiet=True) as bar,
    ):
        bar.update(3)
        somewhere_deep()
        time.sleep(0.5)  # told once, not again and again
    assert len(said) == 1
    assert "latents 3/7" in said[0]
    assert str(tmp_path / "stacks.txt") in said[0]
    assert "somewhere_deep" in (tmp_path / "stacks.txt").read_text()


def test_work_that_moves_is_left_alone(tmp_path):
    said: list[str] = []
    with (
        watchdog.Watchdog(tmp_path / "stacks.txt", said.append, 1.0) as dog,
        progress.progress_listener(dog.pat),
    ):
        for _ in progress.track_progress(range(16), "train", 16, quiet=True):
            time.sleep(0.1)
    assert not said
    assert not (tmp_path / "stacks.txt").exists()


def test_patience_is_set_by_the_environment(monkeypatch, tmp_path):
    assert watchdog.timeout_seconds() == 600
    monkeypatch.setenv(watchdog.TIMEOUT_VARIABLE, "0")
    with watchdog.Watchdog(tmp_path / "stacks.txt", print, watchdog.timeout_seconds()):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    monkeypatch.setenv(watchdog.TIMEOUT_VARIABLE, "ten")
    with pytest.raises(ConfigError, match="LORAKIT_WATCHDOG_SECONDS"):
        watchdog.timeout_seconds()
