"""Start `accelerate launch -m lorakit.training` as a child process.

Forward signals to the trainers and return their exit code: the launcher in between turns every exit code
into 1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from lorakit.core import storage

FOLDER_VARIABLE = "LORAKIT_LAUNCH_FOLDER"
RANK_VARIABLE = "RANK"


def configure_process() -> None:
    """What every process of ours wants before torch is imported: threads that do not spin while they wait
    (two busy processes would halve each other's speed), and no warning of bitsandbytes' optional kernels.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def launch_command(recipe: str, overrides: list[str], *, processes: int = 1) -> list[str]:
    """The `accelerate launch` command line, complete, so that the launcher has nothing to guess or warn
    about.

    Its module is named itself: `accelerate` first imports all of its other commands, which takes seconds.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    options = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", threads]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    return [*launcher, *options, "-m", "lorakit.training", recipe, *overrides]


def run_launcher(arguments: list[str]) -> int:
    """Run the command to its end; SIGINT and SIGTERM go to the trainers, which commit and stop."""
    with tempfile.TemporaryDirectory(prefix="lorakit-") as name:
        folder = Path(name)
        environment = os.environ | {FOLDER_VARIABLE: name}
        # A session of its own: Ctrl-C must reach the trainers through us, not kill the launcher above them.
        child = subprocess.Popen(arguments, env=environment, start_new_session=True)
        with handle_signals(lambda number, _: _forward_signal(child, folder, number)):
            code = child.wait()
        codes = [int(file.read_text()) for file in sorted(folder.glob("exit-*"))]
        return max(codes) if codes else abs(code)


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM for a while, and let a closed terminal (SIGHUP) stop nothing; elsewhere than
    in the main thread they stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    old[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def _forward_signal(child: subprocess.Popen[bytes], folder: Path, number: int) -> None:
    trainers = list(folder.glob("pid-*"))
    for file in trainers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), number)
    if not trainers:  # still starting: nothing to commit
        os.killpg(child.pid, signal.SIGTERM)


def start_missing_processes(arguments: list[str]) -> None:
    """Become all the processes that `accelerate launch --num_processes N` was asked for.

    Without GPUs that launcher starts one process and leaves the others to MPI; here they are started by
    torch's own launcher instead. Returns when nothing is missing, else never.
    """
    wanted = _requested_processes()
    if wanted > 1 and "WORLD_SIZE" not in os.environ:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(wanted), "-m", "lorakit.training"]
        os.execv(sys.executable, [*launcher, *arguments])


def _requested_processes() -> int:
    """N of the `accelerate launch --num_processes N` above this process; 1 when there is none."""
    import psutil

    try:
        words = " ".join((psutil.Process().parent() or psutil.Process()).cmdline())
    except psutil.Error:
        return 1
    found = re.search(r"accelerate.*[ .]launch .*?--num[_-]processes[ =](\d+).* lorakit\.training", words)
    return int(found[1]) if found else 1


def write_pid_file() -> None:
    """In a trainer: tell the launching `lorakit` which process to send signals to."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        storage.write_text(Path(folder) / f"pid-{os.environ.get(RANK_VARIABLE, '0')}", str(os.getpid()))


def write_exit_code(code: int) -> None:
    """In a trainer: tell the launching `lorakit` the exit code."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        storage.write_text(Path(folder) / f"exit-{os.environ.get(RANK_VARIABLE, '0')}", str(code))
