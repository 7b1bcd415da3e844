"""Locks of files: the system's own where the file system has them, else a marker file with the owner's id.

Some network and FUSE file systems have no locks. There a file beside the lock names the process that holds
it; it counts as long as that process is alive, and is replaced afterwards.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

MARKER_SUFFIX = ".owner"
_NO_LOCKS = {getattr(errno, name, 0) for name in ("ENOSYS", "ENOLCK", "ENOTSUP", "EOPNOTSUPP", "EINVAL")}
_EMPTY_MARKER_AGE = 60.0  # seconds; a process writes its id at once after it has created the marker


def wait_for_lock(path: Path, seconds: float, on_wait: Callable[[], None] | None) -> BaseFileLock | None:
    """Lock a file, waiting for another process for at most `seconds`; `on_wait` is called once before."""
    deadline = time.monotonic() + seconds
    while (lock := acquire_lock(path)) is None and time.monotonic() < deadline:
        if on_wait:
            on_wait()
            on_wait = None
        time.sleep(0.2)
    return lock


def acquire_lock(path: Path) -> BaseFileLock | None:
    """Lock a file for this process; None if another one holds the lock. `release()` gives it back.

    Raises OSError if the file cannot be created.
    """
    import filelock

    marker = path.with_name(path.name + MARKER_SUFFIX)
    try:
        native = _native_lock(path)
        native.acquire()
        return native
    except filelock.Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    soft = filelock.SoftFileLock(marker, blocking=False)
    if _is_without_owner(marker):
        soft.break_lock()
    try:
        soft.acquire()
    except filelock.Timeout:
        return None
    return soft


def _native_lock(path: Path) -> BaseFileLock:
    import filelock

    # FileLock is the class of this system; it falls back by itself for one of the errors only.
    lock: BaseFileLock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    return lock


def _is_without_owner(marker: Path) -> bool:
    """Return True for a marker whose process ended before it wrote its id: it would hold the lock forever."""
    try:
        state = marker.stat()
    except FileNotFoundError:
        return False
    return state.st_size == 0 and time.time() - state.st_mtime > _EMPTY_MARKER_AGE


def lock_owner(path: Path) -> str | None:
    """Return the marker file that names the owner of a lock, where the file system has no locks."""
    marker = path.with_name(path.name + MARKER_SUFFIX)
    return str(marker) if marker.exists() else None
