"""Work through many files in processes: results in order, a bounded number in flight, no file stops the rest.

A file that kills its process (a crash in a decoder, or the system short of memory) is found by trying the
ones in flight one by one, and reported like any other bad file.
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

CHUNK_SIZE = 8  # jobs sent at a time, unless told otherwise
CHUNKS_AHEAD = 4  # chunks in flight for every process

_large_file_lock: Any = None  # the lock of this worker process


@contextlib.contextmanager
def exclusive(when: bool) -> Iterator[None]:
    """While `when`, keep other workers out of their own `alone(True)`: one big picture at a time."""
    with _large_file_lock if when and _large_file_lock is not None else contextlib.nullcontext():
        yield


class OrderedProcessPool(Generic[Job, Result]):
    """`function` for every job, in `count` processes; `crashed` makes the result of a job that killed one.

    `chunk` jobs are sent at a time, and AHEAD chunks are on their way to every process.
    """

    def __init__(
        self,
        function: Callable[[Job], Result],
        crashed: Callable[[Job], Result],
        count: int,
        *,
        chunk: int = CHUNK_SIZE,
    ) -> None:
        self.function, self.crashed, self.count, self.chunk = function, crashed, count, chunk

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """The results in the order of the jobs."""
        waiting = iter(jobs)
        if self.count < 2:
            yield from map(self.function, waiting)
            return
        working = False
        flying: deque[tuple[list[Job], Future[list[Result]]]] = deque()
        pool = _pool(self.count)
        try:
            while True:
                while len(flying) < CHUNKS_AHEAD * self.count and (
                    chunk := list(itertools.islice(waiting, self.chunk))
                ):
                    flying.append((chunk, _submit(pool, self.function, chunk)))
                if not flying:
                    return
                chunk, future = flying.popleft()
                try:
                    results = future.result()
                except BrokenProcessPool:
                    doubtful = itertools.chain(chunk, *(other for other, _ in flying))
                    flying.clear()
                    pool.shutdown(cancel_futures=True)
                    working = working or _can_spawn()
                    if not working:
                        yield from map(self.function, itertools.chain(doubtful, waiting))
                        return
                    yield from self._one_by_one(doubtful)
                    pool = _pool(self.count)
                else:
                    working = True
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
                    yield self.crashed(job)
                    pool = _pool(1)
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(count: int) -> ProcessPoolExecutor:
    # "spawn" works under any threads that the caller may run.
    context = get_context("spawn")
    return ProcessPoolExecutor(count, context, _init_worker, (context.Lock(),))


def _can_spawn() -> bool:
    """Not under a script that lacks a __main__ guard: there, every new process ends at once."""
    with _pool(1) as pool:
        try:
            return pool.submit(os.getpid).result() > 0
        except BrokenProcessPool:
            return False


def _init_worker(lock: Any) -> None:
    """Set up a worker process."""
    global _alone
    _large_file_lock = lock
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; only the parent answers
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End with the parent, or workers of a killed program would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[Job], Result], chunk: Sequence[Job]
) -> Future[list[Result]]:
    try:
        return pool.submit(_run_chunk, function, chunk)
    except BrokenProcessPool as error:  # broke between two chunks: told like any other
        failed: Future[list[Result]] = Future()
        failed.set_exception(error)
        return failed


def _run_chunk(function: Callable[[Job], Result], chunk: Sequence[Job]) -> list[Result]:
    return [function(job) for job in chunk]
