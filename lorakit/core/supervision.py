"""The connection of a training process to the command that started it.

Both ends are standard streams, because these pass through every launcher between them: the process's stdin
is a pipe that ends when the command ends, however it ends, and its stdout carries its reports to the command
(`process_reports`). Without a command (`accelerate launch -m lorakit.training`) the process watches the
launcher above it, and prints by itself.

A process whose command or launcher is gone behaves as after SIGTERM: it saves its step and stops. (A job
object of Windows or a death signal of Linux would end it without saving.)
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from lorakit.core import command_line, platform, process_reports
from lorakit.core.errors import Interrupted, LorakitError, ProcessEndedError
from lorakit.core.process_reports import Report
from lorakit.core.secret_text import mask_secrets

VARIABLE = "LORAKIT_SUPERVISED"
STARTED_VARIABLE = "LORAKIT_STARTED"  # the time.monotonic() at which the command started
RANK_VARIABLE = "RANK"
POLL_SECONDS = 0.5
_LAUNCHER_SCRIPTS = ("accelerate", "accelerate-launch", "torchrun")
_LAUNCHER_MODULES = ("accelerate.commands.", "torch.distributed.", "lorakit.training.launcher")
GRACE_SECONDS = 3.0  # for a process with nothing to save to end by itself

_connection: _Connection | None = None
_is_early = False  # the handlers of `start` are in place
_saves_state = False
_has_reported = False
_is_orphan = False


class _Connection:
    """Copies of the command's streams that no child process inherits."""

    def __init__(self) -> None:
        self.lifeline, self.reports = os.dup(0), os.dup(1)


def rank() -> int:
    """Return the number of this process among those of a run, counted from 0."""
    return int(os.environ.get(RANK_VARIABLE, "0"))


def connect(*, keep_streams: bool = False) -> None:
    """Use stdin and stdout as the connection to the command, if a command started this process.

    stdin is then empty, and what is printed on stdout goes to stderr; a launcher keeps both for its children.
    """
    global _connection
    if _connection is not None or os.environ.get(VARIABLE) != "1":
        return
    _connection = _Connection()
    if not keep_streams:
        del os.environ[VARIABLE]
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # stderr is closed
            os.dup2(null, 1)
        os.close(null)


def is_connected() -> bool:
    """Return True if a command prints what this process reports."""
    return _connection is not None


def start() -> None:
    """Connect a training process to its command: report its id, end with the command, stop at signals.

    To be called before the slow imports. Until training handles signals itself, one ends the process at once:
    there is nothing to save.
    """
    global _is_early
    command_line.escape_unencodable_output()
    connect()
    for number in platform.STOP_SIGNALS:
        signal.signal(number, _exit_early)
    for number in platform.HANGUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _is_early = True
    threading.Thread(target=_watch_signals, args=(platform.signal_pipe(),), daemon=True).start()
    os.environ.setdefault(STARTED_VARIABLE, repr(time.monotonic()))
    _send(Report("start", rank(), pid=os.getpid()))
    watch_parent(_stop_orphan)


def _exit_early(number: int, _: FrameType | None) -> None:
    report_end(Interrupted("stopped before the first step of this session", signal_number=number))
    os._exit(128 + number)


def _watch_signals(pipe: int) -> None:
    """End a process with nothing to save whose main thread is in a long call of a library at a signal."""
    while numbers := os.read(pipe, 1):
        if numbers[0] in platform.STOP_SIGNALS and not _ends_by_itself():
            stop = Interrupted("stopped before the first step of this session", signal_number=numbers[0])
            os._exit(128 + numbers[0] if _has_reported else report_end(stop))


def _ends_by_itself() -> bool:
    """Wait for some seconds; return True if this process has state to save, and ends after its step."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        if _saves_state:
            return True
        time.sleep(0.1)
    return False


@contextlib.contextmanager
def saving_state() -> Iterator[None]:
    """Declare that within the block a stop takes as long as the step and its checkpoint need."""
    global _saves_state
    if _is_orphan:  # a library has swallowed the interruption
        raise Interrupted("stopped before the first step of this session", signal_number=signal.SIGTERM)
    _saves_state = True
    try:
        yield
    finally:
        _saves_state = False


def report_end(error: BaseException) -> int:
    """Report why this process ends, to the command or on stderr; return the exit code.

    The command shows one report of all processes. Without a command each process prints its own, but an
    interruption, which comes to all, only the first.
    """
    global _has_reported
    report = describe_end(error, rank())
    _has_reported = True
    _ignore_signals()
    if not _send(report) and not (report.kind == "stopped" and rank()):
        print_report(report)
    return report.code


def report_crash(crash: Report) -> None:
    """Report that a training process was killed; its launcher does this."""
    if not _send(crash):
        command_line.print_error(LorakitError(f"training process {crash.rank} was ended by {crash.text}"))


def end_quietly() -> None:
    """Let no late signal disturb the end of a process that has done its work."""
    _ignore_signals()


def _ignore_signals() -> None:
    if _is_early and threading.current_thread() is threading.main_thread():
        for number in platform.STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def describe_end(error: BaseException, number: int = 0) -> Report:
    """Return the report of an error: its kind, the exit code and the text that is printed."""
    if isinstance(error, Interrupted):
        return Report("stopped", number, error.exit_code, text=str(error))
    if isinstance(error, LorakitError):
        kind = "consequence" if isinstance(error, ProcessEndedError) else "error"
        return Report(kind, number, error.exit_code, text=str(error))
    import traceback

    text = mask_secrets("".join(traceback.format_exception(error)).rstrip())
    return Report("traceback", number, 1, text=text)


def print_report(report: Report) -> None:
    """Print the end of a training process on stderr."""
    if report.kind in ("error", "consequence"):
        command_line.print_error(LorakitError(report.text))
    else:
        command_line.print_text(report.text)


def _send(report: Report) -> bool:
    """Send a report to the command; False if there is none, or it has ended."""
    if _connection is None:
        return False
    try:
        process_reports.write_report(_connection.reports, report)
    except OSError:
        return False
    return True


# ---- the end of the parent ---------------------------------------------------------------------------------


def watch_parent(on_end: Callable[[], None]) -> None:
    """Call `on_end` once, in a thread, when the command or the launcher that started this process has ended.

    Another parent may end: a shell that has started it in the background, for example.
    """
    once = threading.Lock()

    def end() -> None:
        if once.acquire(blocking=False):
            on_end()

    if _connection is not None:
        lifeline = _connection.lifeline
        threading.Thread(target=_wait_for_end, args=(lifeline, end), daemon=True).start()
    launcher = find_launcher()
    if launcher:
        threading.Thread(target=_wait_for_launcher, args=(launcher, end), daemon=True).start()


def _wait_for_end(lifeline: int, end: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # an error of the pipe is its end, too
        while os.read(lifeline, 1024):
            pass
    end()


def _wait_for_launcher(pid: int, end: Callable[[], None]) -> None:
    while platform.is_parent_alive(pid):
        time.sleep(POLL_SECONDS)
    end()


def find_launcher() -> int:
    """Return the process id of the parent if it is a launcher of training processes, else 0.

    These are `accelerate launch`, `torchrun`, `python -m torch.distributed.run` and lorakit's own.
    """
    for word in parent_command_line()[:4]:
        if word.startswith(_LAUNCHER_MODULES) or Path(word).stem in _LAUNCHER_SCRIPTS:
            return platform.parent_id()
    return 0


def parent_command_line() -> list[str]:
    """Return the command line of the process that started this one; empty if it cannot be read."""
    import psutil

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    return []


def _stop_orphan() -> None:
    """Stop this process: after its step, or soon if it has nothing to save."""
    global _is_orphan
    _is_orphan = True
    platform.signal_self(signal.SIGTERM)
    if not _ends_by_itself():
        os._exit(128 + signal.SIGTERM)


# ---- the time of the command -------------------------------------------------------------------------------


def seconds_since_start(fallback: float) -> float:
    """Return the seconds since the command started; since `fallback`, a time.monotonic(), without one.

    The clock of time.monotonic() is the same in all processes of a machine.
    """
    now = time.monotonic()
    with contextlib.suppress(ValueError):
        elapsed = now - float(os.environ.get(STARTED_VARIABLE, ""))
        if math.isfinite(elapsed) and now - fallback <= elapsed <= 30 * 86400:
            return elapsed
    return now - fallback
