"""Inputs that threads read ahead, in their order, while the ones before are encoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")
MAX_THREADS = 8
AHEAD = 4  # inputs in memory for each thread


def decoding_threads(device: torch.device) -> int:
    """Return the number of threads that decode images; none where the CPU itself encodes, on all cores."""
    return 0 if device.type == "cpu" else max(1, min(MAX_THREADS, (os.cpu_count() or 2) - 1))


def load_ahead(inputs: Sequence[T], load: Callable[[T], U], *, threads: int) -> Iterator[tuple[T, U]]:
    """Yield each input with what `load` returns for it; without threads, it is loaded when it is needed.

    An error of `load` is raised when its input would be yielded.
    """
    if threads == 0:
        yield from ((one, load(one)) for one in inputs)
        return
    waiting: deque[tuple[T, Future[U]]] = deque()
    with ThreadPoolExecutor(threads, "decode") as pool:
        try:
            for one in inputs:
                waiting.append((one, pool.submit(load, one)))
                if len(waiting) > AHEAD * threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
