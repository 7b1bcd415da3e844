"""Differences between operating systems: processes, signals, locks, durable folders, pipes and memory.

The only module that calls functions of a single operating system. mypy checks each branch on its system only
(`mypy --platform win32` checks the other one).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

if sys.platform == "win32":
    import ctypes
    import msvcrt


def _signals(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


STOP_SIGNALS = _signals("SIGINT", "SIGTERM", "SIGBREAK")
"""Signals that ask a process to save its work and stop."""
HANGUP_SIGNALS = _signals("SIGHUP")
"""Signals of a closed terminal."""


def is_stopped_by_hangup() -> bool:
    """Return True if this process belongs to a terminal and stops when it is closed.

    A process without a terminal (a service, a job of a scheduler, `setsid`) and one of `nohup` does not.
    """
    if any(signal.getsignal(number) is signal.SIG_IGN for number in HANGUP_SIGNALS):
        return False
    terminal = getattr(os, "ctermid", None)  # Windows has no name for it
    if not terminal:
        return False
    try:
        os.close(os.open(terminal(), os.O_RDONLY))
    except OSError:
        return False
    return bool(HANGUP_SIGNALS)


# ---- command lines -----------------------------------------------------------------------------------------


def quote_argument(text: str) -> str:
    """Return an argument of a command line as a person types it in the shell of this system."""
    if sys.platform == "win32":
        is_plain = re.fullmatch(r"[\w.:\\/@+=-]+", text)
        return text if is_plain else f'"{text}\\"' if text.endswith("\\") else f'"{text}"'
    return shlex.quote(text)


# ---- processes ---------------------------------------------------------------------------------------------


def start_in_own_group(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    bufsize: int = -1,
) -> subprocess.Popen[bytes]:
    """Start a child process that Ctrl-C in the terminal does not reach; `end_group` ends it with its
    children."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(
            command, env=env, stdin=stdin, stdout=stdout, bufsize=bufsize, creationflags=flags
        )
    return subprocess.Popen(
        command, env=env, stdin=stdin, stdout=stdout, bufsize=bufsize, start_new_session=True
    )


def forward_signal(child: subprocess.Popen[bytes], pids: Sequence[int], number: int) -> None:
    """Send a stop signal to the processes `pids` below `child`; those that have ended are ignored.

    Windows has no signals between processes: there the whole group of `child` gets Ctrl-Break.
    """
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            child.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        send_signal(pids, number)


def send_signal(pids: Sequence[int], number: int) -> None:
    """Send a signal to processes; on Windows do nothing, because there it would end them at once."""
    if sys.platform != "win32":
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def signal_pipe() -> int:
    """Return a pipe that gets the number of each signal at once, even if no handler can run yet."""
    read, write = os.pipe()
    set_nonblocking(write)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


def signal_self(number: int) -> None:
    """Send a signal to the main thread of this process, from any thread."""
    if sys.platform == "win32":  # there os.kill ends a process at once
        signal.raise_signal(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def end_group(child: subprocess.Popen[bytes], *, force: bool = False) -> None:
    """End a process of `start_in_own_group` and its children; with `force` they cannot refuse."""
    kill_group = getattr(os, "killpg", None)
    if kill_group:
        with contextlib.suppress(ProcessLookupError):
            # 9 is SIGKILL, which Windows does not name
            kill_group(child.pid, 9 if force else signal.SIGTERM)
        return
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(child.pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.Error):
                process.kill() if force else process.terminate()


def end_process(pid: int) -> None:
    """End a process at once, whatever it is doing; do nothing if it has ended."""
    import psutil

    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).kill()


def is_process_alive(pid: int) -> bool:
    """Return True while a process is running; one that has ended and waits for its parent is not."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def parent_id() -> int:
    """Return the process id of the process that started this one."""
    return os.getppid()


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


def describe_crash(code: int) -> str | None:
    """Return how a process was ended from outside by its return code: a signal, or an error of Windows.

    None for a process that ended by itself.
    """
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"
    if code >= 0xC0000000:  # Windows: NTSTATUS, severity error
        return {0xC0000005: "an access violation"}.get(code, f"Windows error 0x{code:08X}")
    return None


# ---- files -------------------------------------------------------------------------------------------------


class FileStatus(NamedTuple):
    """Status of a regular file as its file system states it; times in nanoseconds.

    `changed` is the time at which content or attributes were last changed, which programs cannot set; it
    equals `modified` where there is none. `number` is the inode or file id on the `device`.
    """

    size: int
    modified: int
    changed: int
    number: int
    device: int


_OPEN_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY", "O_NOINHERIT"))


def file_status(path: str | os.PathLike[str]) -> FileStatus | None:
    """Return the status of a regular file, None for anything else. Raises OSError.

    The file is opened, not only looked up: network file systems answer a look-up from memory, but ask the
    server when a file is opened.
    """
    handle = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    try:
        result = os.fstat(handle)
        if not stat.S_ISREG(result.st_mode):
            return None
        changed = _change_time(handle) or result.st_mtime_ns if os.name == "nt" else result.st_ctime_ns
    finally:
        os.close(handle)
    return FileStatus(result.st_size, result.st_mtime_ns, changed, result.st_ino, result.st_dev)


def _change_time(handle: int) -> int:
    """Return the time of change of an open file on Windows, where `os.stat` lacks it; 0 if there is none."""
    if sys.platform == "win32":
        times = (ctypes.c_longlong * 5)()  # FILE_BASIC_INFO: created, accessed, written, changed; attributes
        file = ctypes.c_void_p(msvcrt.get_osfhandle(handle))
        if ctypes.windll.kernel32.GetFileInformationByHandleEx(file, 0, times, ctypes.sizeof(times)):
            return int(max(0, times[3] - 116_444_736_000_000_000)) * 100  # 100 ns since 1601 to ns since 1970
    return 0


def retry_while_open(operation: Callable[[], object], *, seconds: float = 3.0) -> None:
    """Run an operation on a file; on Windows, repeat it while another process has the file open.

    There a file that somebody reads, a virus scanner for example, can be neither replaced nor removed.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            operation()
            return
        except PermissionError as error:
            # Windows: access denied, sharing violation, lock violation; other systems have no such number
            if getattr(error, "winerror", None) not in (5, 32, 33) or time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


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
    sync_all = getattr(os, "sync", None)
    if sync_all:
        sync_all()
        return
    for path in paths:
        with open(path, "r+b") as file:
            os.fsync(file.fileno())


def max_path_length() -> int:
    """Return the number of characters that the path of a file may have."""
    if sys.platform == "win32":
        import winreg

        with contextlib.suppress(OSError):
            key = r"SYSTEM\CurrentControlSet\Control\FileSystem"
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as folder:
                if winreg.QueryValueEx(folder, "LongPathsEnabled")[0]:
                    return 32_000
        return 259
    return 1 << 20  # the limit of bytes comes first


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
