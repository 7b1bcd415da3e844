"""Locks on file systems with and without locks of their own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from lorakit.core import file_locks, storage

HOLD = "from lorakit.core import file_locks; import os, pathlib, sys, time\n"


@pytest.fixture(params=["native", "ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def file_system(request, monkeypatch):
    """A file system with locks, and ones whose locks fail with an error."""
    if request.param != "native":
        _without_locks(monkeypatch, getattr(errno, request.param))
    return request.param


def _without_locks(monkeypatch, number: int) -> None:
    def acquire(self, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)


def test_a_lock_is_refused_to_a_second_holder_and_free_after_the_first(file_system, tmp_path):
    path = tmp_path / "lock"
    with storage.file_lock(path) as first, storage.file_lock(path) as second:
        assert (first, second) == (True, False)
        assert bool(file_locks.lock_owner(path)) == (file_system != "native")
    with storage.file_lock(path) as third:
        assert third


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_other_errors_of_a_lock_are_errors(number, tmp_path, monkeypatch):
    _without_locks(monkeypatch, number)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number decides
        file_locks.acquire_lock(tmp_path / "lock")
    assert caught.value.errno == number


def _holder(path: Path, then: str) -> subprocess.Popen[str]:
    """A process that holds a lock where the file system has none."""
    patch = "import filelock, errno\ndef fail(*_): raise OSError(errno.ENOLCK, 'no locks')\n"
    patch += "filelock.FileLock.acquire = fail\n"
    code = f"{HOLD}{patch}lock = file_locks.acquire_lock(pathlib.Path(sys.argv[1]))\n"
    code += f"print(bool(lock), flush=True)\n{then}"
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)


def test_without_locks_a_process_that_is_alive_keeps_its_lock_and_a_killed_one_loses_it(
    tmp_path, monkeypatch
):
    _without_locks(monkeypatch, errno.ENOLCK)
    path = tmp_path / "lock"
    process = _holder(path, "time.sleep(100)")
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with storage.file_lock(path) as held:
        assert not held
    process.kill()
    process.wait()
    with storage.file_lock(path) as held:
        assert held


def test_a_lock_is_waited_for_and_this_is_said_once(tmp_path, monkeypatch):
    _without_locks(monkeypatch, errno.ENOLCK)
    path = tmp_path / "lock"
    process = _holder(path, "time.sleep(1); lock.release(); time.sleep(5)")
    assert process.stdout is not None
    process.stdout.readline()
    said, began = [], time.monotonic()
    with storage.file_lock(path, wait_seconds=30, on_wait=lambda: said.append(1)) as held:
        assert held
    assert said == [1]
    assert 0.2 < time.monotonic() - began < 20
    process.kill()
    process.wait()


@pytest.mark.parametrize(("age", "free"), [(0, False), (120, True)])
def test_a_marker_without_an_owner_holds_a_lock_for_a_minute_only(age, free, tmp_path, monkeypatch):
    """Its process was killed between the creation of the file and writing its id."""
    _without_locks(monkeypatch, errno.ENOLCK)
    marker = tmp_path / ("lock" + file_locks.MARKER_SUFFIX)
    marker.touch()
    os.utime(marker, (time.time() - age,) * 2)
    with storage.file_lock(tmp_path / "lock") as held:
        assert held == free
