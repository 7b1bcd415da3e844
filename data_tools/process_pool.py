"""A process pool for many files: results in order, a bounded number in flight, and no file stops the rest.

A file that ends its process (a crash in a decoder, or too little memory) is found by repeating the jobs in
flight one by one, and reported like any other bad file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

CHUNK_SIZE = 8  # default number of jobs sent at a time
CHUNKS_AHEAD = 4  # chunks in flight for each process

_large_file_lock: Any = None  # in a worker process: shared by all of them


@contextlib.contextmanager
def exclusive(is_large: bool) -> Iterator[None]:
    """If `is_large`, wait until no other worker is in `exclusive(True)`: one large image at a time."""
    with _large_file_lock if is_large and _large_file_lock is not None else contextlib.nullcontext():
        yield


class OrderedProcessPool(Generic[Job, Result]):
    """Run `function` for every job in `num_processes`; `on_crash` makes the result of a job that ended one.

    `chunk_size` jobs are sent at a time; each process has up to CHUNKS_AHEAD chunks in flight.
    """

    def __init__(
        self,
        function: Callable[[Job], Result],
        on_crash: Callable[[Job], Result],
        num_processes: int,
        *,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        self.function, self.on_crash = function, on_crash
        self.num_processes, self.chunk_size = num_processes, chunk_size

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the results in the order of the jobs."""
        pending = iter(jobs)
        if self.num_processes < 2:
            yield from map(self.function, pending)
            return
        spawn_works = False
        in_flight: deque[tuple[list[Job], Future[list[Result]]]] = deque()
        pool = _pool(self.num_processes)
        try:
            while True:
                while len(in_flight) < CHUNKS_AHEAD * self.num_processes and (
                    chunk := list(itertools.islice(pending, self.chunk_size))
                ):
                    in_flight.append((chunk, _submit(pool, self.function, chunk)))
                if not in_flight:
                    return
                chunk, future = in_flight.popleft()
                try:
                    results = future.result()
                except BrokenProcessPool:
                    suspects = itertools.chain(chunk, *(other for other, _ in in_flight))
                    in_flight.clear()
                    pool.shutdown(cancel_futures=True)
                    spawn_works = spawn_works or _can_spawn()
                    if not spawn_works:
                        yield from map(self.function, itertools.chain(suspects, pending))
                        return
                    yield from self._one_by_one(suspects)
                    pool = _pool(self.num_processes)
                else:
                    spawn_works = True
                    yield from results
        finally:
            pool.shutdown(cancel_futures=True)

    def _one_by_one(self, jobs: Iterable[Job]) -> Iterator[Result]:
        pool = _pool(1)
        try:
            for job in jobs:
                try:
                    yield _submit(pool, self.function, [job]).result()[0]
                except BrokenProcessPool:
                    pool.shutdown(cancel_futures=True)
                    yield self.on_crash(job)
                    pool = _pool(1)
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(count: int) -> ProcessPoolExecutor:
    # "spawn" is safe whatever threads the caller runs.
    context = get_context("spawn")
    return ProcessPoolExecutor(count, context, _init_worker, (context.Lock(),))


def _can_spawn() -> bool:
    """Return False under a script without a __main__ guard, where every new process ends at once."""
    with _pool(1) as pool:
        try:
            return pool.submit(os.getpid).result() > 0
        except BrokenProcessPool:
            return False


def _init_worker(lock: Any) -> None:
    """Set up a worker process."""
    global _large_file_lock
    _large_file_lock = lock
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; only the parent handles it
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End with the parent; otherwise workers of a killed program would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[Job], Result], chunk: Sequence[Job]
) -> Future[list[Result]]:
    try:
        return pool.submit(_run_chunk, function, chunk)
    except BrokenProcessPool as error:  # broken between two chunks: reported with the results
        failed: Future[list[Result]] = Future()
        failed.set_exception(error)
        return failed


def _run_chunk(function: Callable[[Job], Result], chunk: Sequence[Job]) -> list[Result]:
    return [function(job) for job in chunk]
