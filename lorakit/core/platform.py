"""Differences between operating systems: processes, signals, locks, durable folders, pipes and memory.

The only module that calls functions of a single operating system. mypy checks each branch on its system only
(`mypy --platform win32` checks the other one).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

if sys.platform == "win32":
    import ctypes
    import msvcrt
    import time
else:
    import fcntl
    import select

if sys.platform == "win32":
    STOP_SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
    """Signals that ask a process to save its work and stop."""
    HANGUP_SIGNALS: tuple[signal.Signals, ...] = ()
    """Signals of a closed terminal, which does not stop a training."""
else:
    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
    HANGUP_SIGNALS = (signal.SIGHUP,)


# ---- processes ---------------------------------------------------------------------------------------------


def start_in_own_group(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | None = None,
    bufsize: int = -1,
) -> subprocess.Popen[bytes]:
    """Start a child process that Ctrl-C in the terminal does not reach; `end_group` ends it with its
    children."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(command, env=env, stdin=stdin, bufsize=bufsize, creationflags=flags)
    return subprocess.Popen(command, env=env, stdin=stdin, bufsize=bufsize, start_new_session=True)


def forward_signal(child: subprocess.Popen[bytes], pids: Sequence[int], number: int) -> None:
    """Send a stop signal to the processes `pids` below `child`; those that have ended are ignored.

    Windows has no signals between processes: there the whole group of `child` gets Ctrl-Break.
    """
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            child.send_signal(signal.CTRL_BREAK_EVENT)
        return
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_group(child: subprocess.Popen[bytes], *, force: bool = False) -> None:
    """End a process of `start_in_own_group` and its children; with `force` they cannot refuse."""
    if sys.platform == "win32":
        import psutil

        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(child.pid).children(recursive=True):
                process.kill()
        child.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL if force else signal.SIGTERM)


def is_parent_alive(pid: int) -> bool:
    """Return True while the process `pid`, which started this process, is running."""
    if sys.platform == "win32":  # there a dead parent keeps its number
        import psutil

        return psutil.pid_exists(pid)
    return os.getppid() == pid


def replace_process(command: Sequence[str]) -> NoReturn:
    """Run `command` in place of this process; never returns."""
    if sys.platform == "win32":  # there os.execv starts a second process and returns to the shell at once
        sys.exit(subprocess.call(command))
    os.execv(command[0], list(command))


# ---- files -------------------------------------------------------------------------------------------------


def lock_file(file: BinaryIO) -> bool:
    """Lock an open file for this process until it is closed; return False when another process holds it."""
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; file systems that cannot do this are skipped."""
    if sys.platform == "win32":
        return  # NTFS journals names itself, and folders cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)


def sync_files(paths: Sequence[Path]) -> None:
    """Make the content of files durable: one sync of everything where the system has it, else file by
    file."""
    if sys.platform != "win32":
        os.sync()
        return
    for path in paths:
        with open(path, "r+b") as file:
            os.fsync(file.fileno())


def is_writable_folder(folder: Path) -> bool:
    """Return True if files can be made in a folder: permission, and a file system not mounted read-only."""
    if sys.platform == "win32":
        return os.access(folder, os.W_OK)
    return os.access(folder, os.W_OK | os.X_OK) and not os.statvfs(folder).f_flag & os.ST_RDONLY


# ---- pipes -------------------------------------------------------------------------------------------------


def set_nonblocking(pipe: int) -> None:
    """Make writes to a pipe return at once, however slow its reader is."""
    if sys.platform == "win32":
        mode = ctypes.c_ulong(1)  # PIPE_NOWAIT
        handle = msvcrt.get_osfhandle(pipe)
        ctypes.windll.kernel32.SetNamedPipeHandleState(handle, ctypes.byref(mode), None, None)
    else:
        os.set_blocking(pipe, False)


def write_available(pipe: int, data: bytes | bytearray) -> int:
    """Write what a non-blocking pipe takes now; return the number of bytes, 0 when it is full.

    Raises OSError when the reader is gone.
    """
    try:
        return os.write(pipe, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        if sys.platform == "win32" and error.errno == errno.ENOSPC:  # how the C library reports a full pipe
            return 0
        raise


def wait_writable(pipe: int, seconds: float) -> None:
    """Wait until a pipe takes data, for at most `seconds`."""
    if sys.platform == "win32":
        time.sleep(min(seconds, 0.05))  # select() takes sockets only
    else:
        select.select([], [pipe], [], seconds)


# ---- machine -----------------------------------------------------------------------------------------------


def total_memory() -> int:
    """Bytes of main memory."""
    import psutil

    return int(psutil.virtual_memory().total)
