"""Ray Data, an extra: work on all GPUs of a machine or of a cluster, by workers that hold a model each."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.core import errors
from lorakit.core.errors import ConfigError, LorakitError, first_line
from lorakit.core.strict_json import parse_json

LOCAL = "local"
"""The address of a Ray of its own on this machine."""
CPUS_PER_WORKER = 4  # without a GPU
Worker = Callable[[list[Any]], list[dict[str, Any]]]
"""Returns one result, which JSON can hold, for each item."""


@contextlib.contextmanager
def ray_session(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected to the cluster at `address`, or to one of its own for `LOCAL`.

    Raises ConfigError if Ray is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # the nodes have lorakit installed
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("Ray is not installed", where="ray", remedy='pip install "lorakit[ray]"') from error
    started_here = not ray.is_initialized()
    if started_here:
        options = {"log_to_driver": False, "include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address=None if address == LOCAL else address, **options)
        except Exception as error:  # Ray raises plain exceptions, too
            message, remedy = f"Ray does not start: {first_line(error)}", "try again, or leave --ray out"
            raise ConfigError(message, where=f"ray: {address}", remedy=remedy) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


@dataclass(frozen=True)
class WorkerPool:
    """Workers, and what each of them takes of the cluster."""

    size: int
    num_gpus: int
    num_cpus: int

    @classmethod
    def for_cluster(cls, ray: Any, num_chunks: int) -> WorkerPool:
        """Return one worker for each GPU; without any, one for a few CPUs, of which one stays free."""
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        size = max(1, min(gpus or cpus // CPUS_PER_WORKER, num_chunks))
        return cls(size, 1 if gpus else 0, 1 if gpus else max(1, min(CPUS_PER_WORKER, cpus - 1)))


def map_on_workers(
    address: str,
    make_worker: Callable[..., Worker],
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    chunk: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index of the item, result) as `make_worker(*arguments)` returns them, `chunk` items at a time.

    A LorakitError of a worker is raised here.
    """
    if not items:
        return
    with ray_session(address) as ray:
        num_chunks = -(-len(items) // chunk)
        pool = WorkerPool.for_cluster(ray, num_chunks)
        rows = ray.data.from_items([{"index": i} for i in range(len(items))], override_num_blocks=num_chunks)
        results = rows.map_batches(
            _Actor,
            fn_constructor_args=(make_worker, arguments, [ray.put(list(items))], _num_threads()),
            batch_size=chunk,
            compute=ray.data.ActorPoolStrategy(size=pool.size),
            num_gpus=pool.num_gpus,
            num_cpus=pool.num_cpus,
        )
        for row in results.iter_rows():
            result = parse_json(row["result"], "a worker of Ray")
            if "raised" in result:
                raise _error(result["raised"])
            yield int(row["index"]), result


class _Actor:
    """A worker within a process of Ray."""

    def __init__(
        self, make_worker: Callable[..., Worker], arguments: tuple[Any, ...], items: list[Any], threads: int
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)  # or a CPU would compute other bits than without Ray
        self._items = ray.get(items[0])
        self._make_worker, self._arguments = make_worker, arguments
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        indices = [int(index) for index in batch["index"]]
        try:
            if self._worker is None:
                self._worker = self._make_worker(*self._arguments)
            results = self._worker([self._items[index] for index in indices])
        except LorakitError as error:
            raised = [type(error).__name__, error.message, error.where, error.remedy]
            results = [{"raised": raised} for _ in indices]
        return {"index": indices, "result": [json.dumps(result) for result in results]}


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _error(raised: Sequence[str | None]) -> LorakitError:
    name, message, where, remedy = raised
    error_class = getattr(errors, str(name), LorakitError)
    return error_class(str(message), where=where, remedy=remedy)
