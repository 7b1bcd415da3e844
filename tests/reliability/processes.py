"""Trainings in processes of their own, which can be killed for good, and faults to put into them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lorakit.training.train
from lorakit.core import output_paths, storage
from lorakit.training import final_loss, run_folder
from tests import runs  # noqa: F401 - it also names modules to preload, and the last one to do so counts
from tests.reliability import instants
from tests.reliability.tiny_training import TinyTraining

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.reliability.preload"])


def start(training: TinyTraining, fault: Callable[..., None] | None = None, *arguments: Any) -> BaseProcess:
    """Run the command in a process of its own, after `fault(*arguments)` there."""
    process = _CONTEXT.Process(target=_train, args=(training, fault, arguments))
    process.start()
    return process


def train(
    training: TinyTraining, fault: Callable[..., None] | None = None, *arguments: Any
) -> tuple[int, str]:
    """The same, and wait for its end; returns the exit code (or minus the signal) and the output."""
    training.output.unlink(missing_ok=True)
    process = start(training, fault, *arguments)
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode, training.output.read_text(errors="replace")


def _train(training: TinyTraining, fault: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    os.environ["LORAKIT_CACHE"] = str(training.cache)
    output = os.open(training.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    if fault:
        fault(*arguments)
    sys.exit(lorakit.training.train.main([str(training.recipe)]))


# faults


def kill_before(root: Path, number: int) -> None:
    """Die before the `number`-th operation below `root`, as `instants.Recorder` counts them."""
    run_folder.HEARTBEAT_EVERY = float("inf")
    final_loss.measure_final_loss = lambda session, loss: None  # as while it was recorded
    seen = -1

    def operation(name: str, path: Path) -> None:
        nonlocal seen
        seen += path.is_relative_to(root)
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    storage.io_hook = operation


def signal_at(kind: str, part: str, number: int, twice: bool = False, pause: float = 1.0) -> None:
    """Send this process a signal at the first operation of a kind on a path that has this part.

    `twice`: and again after a pause, in seconds.
    """
    sent = False

    def operation(name: str, path: Path) -> None:
        nonlocal sent
        if not sent and name == kind and part in str(path):
            sent = True
            os.kill(os.getpid(), number)
            if twice:
                time.sleep(pause)
                os.kill(os.getpid(), number)

    storage.io_hook = operation


def small_files(limit: int) -> None:
    """No file of this process may become larger than `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def few_files(limit: int) -> None:
    """This process may not have more than `limit` files open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def hung_up() -> None:
    """The terminal is closed in the middle of the training: SIGHUP, and nobody reads what is printed."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _closed()
    signal_at("append", "metrics", signal.SIGHUP)


def unread() -> None:
    """The same under `nohup`, which has SIGHUP ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _closed()
    signal_at("append", "metrics", signal.SIGHUP)


def unread_and_terminated() -> None:
    """Nobody reads what is printed, and it is asked to stop."""
    _closed()
    signal_at("append", "metrics", signal.SIGTERM)


def _closed() -> None:
    read, write = os.pipe()
    os.close(read)
    for stream in (1, 2):
        os.dup2(write, stream)


def short_of_everything(files: int) -> None:
    """Few open files, and no shared memory: semaphores fail, and mapping shared memory ends the process."""
    import multiprocessing.synchronize

    few_files(files)

    class NoSemaphores:
        def __new__(cls, *_: object) -> NoSemaphores:
            raise FileNotFoundError("/dev/shm")

    multiprocessing.synchronize._multiprocessing.SemLock = NoSemaphores  # type: ignore[attr-defined]
    inherited = _shared()

    def operation(name: str, path: Path) -> None:
        if _shared() != inherited:
            sys.exit(f"shared memory is used: {_shared()}")

    storage.io_hook = operation


def _shared() -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "/dev/shm" in line}


def out_of_files() -> None:
    """The limit of open files is reached at the first checkpoint."""

    def operation(name: str, path: Path) -> None:
        if name == "write" and "checkpoints" in str(path):
            free = os.open(os.devnull, os.O_RDONLY)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))

    storage.io_hook = operation


NOT_PERMITTED = 77


def small_disk(training: TinyTraining, kilobytes: int) -> None:
    """Put the state on a real file system of this size that only this process sees, and keep a copy of it
    when the process ends; exit code `NOT_PERMITTED` where the system has no such thing."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts = 0x10000000, 0x00020000
    user, group = os.getuid(), os.getgid()
    if libc.unshare(new_user | new_mounts):
        os._exit(NOT_PERMITTED)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    tree = instants.capture(training.state)
    options = f"size={kilobytes}k".encode()
    if libc.mount(b"none", os.fsencode(training.state), b"tmpfs", 0, options):
        os._exit(NOT_PERMITTED)
    instants.lay_out(tree, training.state)
    output_paths.MIN_FREE_BYTES = 0  # it is to be found full in the middle
    plain = lorakit.training.train.main

    def main(arguments: list[str]) -> int:
        code = plain(arguments)
        left = instants.capture(training.state)
        libc.umount2(os.fsencode(training.state), 2)
        instants.lay_out(left, training.state)
        return code

    lorakit.training.train.main = main
