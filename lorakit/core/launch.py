"""Start the training in a child process, forward signals to it and return its exit code.

One process is started directly (`python -m lorakit.training`), several through `lorakit.training.launcher`.
The child is connected to this process as `supervision` describes: it stops when this process ends, and
reports how it ended, which is printed here, last and once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from lorakit.core import platform, process_setup, supervision
from lorakit.core.errors import Interrupted
from lorakit.core.process_reports import Report, ReportReader
from lorakit.core.progress import QUIET_VARIABLE, print_line

ACCEPT_CHANGES = "--accept-changes"  # option of `python -m lorakit.training`, as of `lorakit train`
MAX_SIGNALS = 3  # the first lets a step end, the second ends a process itself, the third kills it
STARTING = "starting: loading torch and diffusers"
_LAUNCHER = "lorakit.training.launcher"

RecordEndFn = Callable[[Report], Report]
"""Called with the report of an early end; returns the one to print."""


def training_command(recipe: str, overrides: list[str], *, num_processes: int = 1) -> list[str]:
    """Return the command line that trains a recipe file in `num_processes` processes."""
    if num_processes == 1:
        return [sys.executable, "-m", "lorakit.training", recipe, *overrides]
    return [sys.executable, "-m", _LAUNCHER, str(num_processes), recipe, *overrides]


def _num_threads(num_processes: int) -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // num_processes))


def run_training(command: list[str], record_end: RecordEndFn | None = None) -> int:
    """Run a training command to its end, print why it ended early, and return its exit code.

    SIGINT and SIGTERM are forwarded to the training processes, which save a checkpoint and stop.
    `record_end` notes an early end where the run is, and completes the report of a process that was killed,
    for example by the system when memory runs out.
    """
    if not os.environ.get(QUIET_VARIABLE):
        print_line(STARTING)
    child = _Child(command)
    with handle_signals(child.on_signal):
        code = child.run()
    if code == 0:
        return 0
    end = _find_end(code, child)
    if end is None:  # it printed its error itself
        return exit_code(code)
    supervision.print_report((record_end or describe_crash)(end))
    # A process that was still importing was ended by SIGTERM, whatever this one has received.
    return 128 + child.received[0] if end.kind == "stopped" and child.received else end.code


def exit_code(code: int) -> int:
    """Return the exit code of a shell for the return code of a process: 128 and the signal that killed it."""
    if platform.describe_crash(code) is None:
        return code
    return 128 - code if code < 0 else 1


def _find_end(code: int, child: _Child) -> Report | None:
    """Return the report of an early end: the processes' own, or that the child was killed."""
    reported, how = child.reader.end(), platform.describe_crash(code)
    if reported and reported.kind in ("crash", "error", "traceback"):
        return reported
    if child.received:  # this process has stopped it, perhaps before it could report
        if reported or (how is None and code not in [128 + number for number in child.received]):
            return reported
        stop = Interrupted("stopped before the first step of this session", signal_number=child.received[0])
        return supervision.describe_end(stop)
    if how is None:
        return reported
    return Report("crash", -1 if child.has_launcher else 0, exit_code(code), text=how)


def describe_crash(end: Report) -> Report:
    """Return a report with a sentence for the name of the signal that killed a process."""
    if end.kind != "crash":
        return end
    text = f"{process_name(end)} was ended by {end.text}\n  remedy: run the same command again to go on"
    return Report("error", end.rank, end.code, text=text)


def process_name(crash: Report) -> str:
    """Name the process that was killed: the only one, one of several, or their launcher (-1)."""
    if crash.rank < 0:
        return "the launcher of the training processes"
    return f"training process {crash.rank}" if crash.pid else "the training process"


class _Child:
    """The training process, or the launcher of several, and the connection to it."""

    def __init__(self, command: list[str]) -> None:
        self.command, self.has_launcher = command, _LAUNCHER in command
        self.reader, self.received = ReportReader(), list[int]()
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run the process to its end, and that of all training processes; return its code."""
        num_processes = int(self.command[self.command.index(_LAUNCHER) + 1]) if self.has_launcher else 1
        environment = {"OMP_NUM_THREADS": _num_threads(num_processes)} | os.environ
        environment |= {supervision.VARIABLE: "1"}
        environment.setdefault(supervision.STARTED_VARIABLE, repr(process_setup.STARTED))
        # In its own group: Ctrl-C reaches the trainers through `on_signal`, and does not end a launcher.
        pipe = subprocess.PIPE
        self.process = process = platform.start_in_own_group(
            self.command, env=environment, stdin=pipe, stdout=pipe, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        reports = iter(process.stdout.readline, b"")
        thread = threading.Thread(target=self.reader.read, args=(reports,), daemon=True)
        thread.start()
        if self.received:  # before there was a process
            platform.end_group(process)
        code = process.wait()
        process.stdin.close()  # a launcher may be dead, and its processes not: they stop now
        while thread.is_alive():
            thread.join(0.2)
            if not any(map(platform.is_process_alive, self.reader.pids())):
                thread.join(1.0)
                break
        return code

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Forward a signal to the training processes."""
        self.received.append(number)
        pids = self.reader.pids()
        if self.process is None:
            return
        if len(self.received) >= MAX_SIGNALS:
            for pid in pids:
                platform.end_process(pid)
            platform.end_group(self.process, force=True)
        elif pids:
            # the training processes have no terminal, and ignore its end
            stop = signal.SIGTERM if number in platform.HANGUP_SIGNALS else number
            platform.forward_signal(self.process, pids, stop)
        else:  # still importing: there is nothing to save
            platform.end_group(self.process)


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the stop signals within the block: SIGINT, SIGTERM and, in a terminal, SIGHUP when it is closed.

    Without a terminal, and with `nohup`, SIGHUP is ignored. Only the main thread can set handlers: in another
    thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in platform.STOP_SIGNALS}
    hangup = handler if platform.is_stopped_by_hangup() else signal.SIG_IGN
    old |= {number: signal.signal(number, hangup) for number in platform.HANGUP_SIGNALS}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def start_missing_processes(arguments: list[str]) -> None:
    """Start all processes of `accelerate launch --num_processes N` where it starts only one.

    Without GPUs that launcher starts one process and leaves the others to MPI; this process is then replaced
    by lorakit's own launcher, which starts N. Returns only if no process is missing.
    """
    num_processes = _requested_processes()
    if num_processes > 1 and "WORLD_SIZE" not in os.environ:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        launcher = [sys.executable, "-m", _LAUNCHER, str(num_processes)]
        platform.replace_process([*launcher, *arguments])


def _requested_processes() -> int:
    """N of the `accelerate launch --num_processes N` that started this process; 1 without a launcher."""
    words = " ".join(supervision.parent_command_line())
    match = re.search(r"accelerate.*[ .]launch .*?--num[_-]processes[ =](\d+).* lorakit\.training", words)
    return int(match[1]) if match else 1
