"""Start the training in a child process, forward signals to it and return its exit code.

One process is started directly (`python -m lorakit.training`), several through `accelerate launch`. The
launcher turns every exit code into 1, so the trainers record their process ids and exit codes in a temporary
folder.
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

from lorakit.core import platform, storage

FOLDER_VARIABLE = "LORAKIT_LAUNCH_FOLDER"
RANK_VARIABLE = "RANK"


def configure_process() -> None:
    """Set what has to be set before torch is imported.

    Idle threads sleep instead of spinning, because two busy processes would halve each other's speed;
    bitsandbytes does not warn about optional kernels.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def training_command(recipe: str, overrides: list[str], *, num_processes: int = 1) -> list[str]:
    """Return the command line that trains a recipe file in `num_processes` processes.

    One process needs no launcher, which takes about 4 s to import. For several, the launcher's module is
    named directly, because the command `accelerate` imports all of its other commands first, and every
    option is given, because the launcher warns about those that are missing.
    """
    training = ["-m", "lorakit.training", recipe, *overrides]
    if num_processes == 1:
        return [sys.executable, *training]
    options = ["--num_processes", str(num_processes), "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", _num_threads(num_processes)]
    return [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *options, *training]


def _num_threads(num_processes: int) -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // num_processes))


def run_training(command: list[str]) -> int:
    """Run a training command to its end and return the exit code of the trainers.

    SIGINT and SIGTERM are forwarded to the trainers, which save a checkpoint and stop.
    """
    with tempfile.TemporaryDirectory(prefix="lorakit-") as name:
        folder = Path(name)
        environment = {"OMP_NUM_THREADS": _num_threads(1)} | os.environ | {FOLDER_VARIABLE: name}
        # In its own group: Ctrl-C must reach the trainers through `forward`, not end the launcher above them.
        child = platform.start_in_own_group(command, env=environment)
        received: list[int] = []

        def forward(number: int, _: FrameType | None) -> None:
            received.append(number)
            _forward_signal(child, folder, number)

        with handle_signals(forward):
            code = child.wait()
        if codes := [int(file.read_text()) for file in sorted(folder.glob("exit-*"))]:
            return max(codes)
        # The trainers did not get as far as recording a code: stopped while starting, or killed.
        return 128 + received[0] if received else code if code >= 0 else 128 - code


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the stop signals (SIGINT, SIGTERM) within the block, and ignore a closed terminal (SIGHUP).

    Only the main thread can set handlers: in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in platform.STOP_SIGNALS}
    old |= {number: signal.signal(number, signal.SIG_IGN) for number in platform.HANGUP_SIGNALS}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def _forward_signal(child: subprocess.Popen[bytes], folder: Path, number: int) -> None:
    trainers = [int(file.read_text()) for file in folder.glob("pid-*")]
    if trainers:
        platform.forward_signal(child, trainers, number)
    else:  # still importing: there is nothing to save
        platform.end_group(child)


def start_missing_processes(arguments: list[str]) -> None:
    """Start all processes of `accelerate launch --num_processes N` where it starts only one.

    Without GPUs that launcher starts one process and leaves the others to MPI; this process is then replaced
    by torch's own launcher, which starts N. Returns only if no process is missing.
    """
    num_processes = _requested_processes()
    if num_processes > 1 and "WORLD_SIZE" not in os.environ:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(num_processes), "-m", "lorakit.training"]
        platform.replace_process([*launcher, *arguments])


def _requested_processes() -> int:
    """N of the `accelerate launch --num_processes N` that started this process; 1 without a launcher."""
    import psutil

    try:
        words = " ".join((psutil.Process().parent() or psutil.Process()).cmdline())
    except psutil.Error:
        return 1
    match = re.search(r"accelerate.*[ .]launch .*?--num[_-]processes[ =](\d+).* lorakit\.training", words)
    return int(match[1]) if match else 1


def write_pid_file() -> None:
    """Record this trainer's process id, so that the parent process can forward signals to it."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        storage.write_text(Path(folder) / f"pid-{os.environ.get(RANK_VARIABLE, '0')}", str(os.getpid()))


def write_exit_code(code: int) -> None:
    """Record this trainer's exit code for the parent process."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        storage.write_text(Path(folder) / f"exit-{os.environ.get(RANK_VARIABLE, '0')}", str(code))
