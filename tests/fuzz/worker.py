"""A process that reads mutated inputs: one JSON line in, `[kind, seed]`, and one out for each.

`python -m tests.fuzz.worker FOLDER`; the parent kills it if an input takes too long.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil

# Arrow's own allocator reserves a gigabyte of addresses, which the limit of this process counts.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import tests.conftest  # noqa: F401 - one thread, no network
from lorakit.core.errors import LorakitError
from tests.fuzz.readers import KINDS
from tests.fuzz.texts import Files

MAX_MEMORY = 1500 << 20  # bytes beyond what the idle process has
PRELOADED = ("torch", "lorakit.adapters.formats", "lorakit.training.run", "pyarrow.parquet")


def write_input(kind: str, seed: int, folder: Path) -> Files:
    """Write the input of a seed into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = KINDS[kind].generate(random.Random(f"{kind} {seed}"))
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def read_input(kind: str, folder: Path) -> tuple[str, str]:
    """Read the input; return `read`, `refused` or `failed`, and the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind].read(folder)
    except LorakitError as error:
        str(error).encode("utf-8")
        return "refused", error.message
    except Exception:
        return "failed", traceback.format_exc()
    return "read", ""


def main() -> None:
    """Read inputs until the parent closes the pipe."""
    folder, plant = Path(sys.argv[1]), sys.argv[2]
    if plant:
        KINDS["recipe"] = KINDS["recipe"]._replace(read=_PLANTED[plant])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    for module in () if plant else PRELOADED:
        __import__(module)
    print("ready", file=out, flush=True)
    limit_memory()
    for line in sys.stdin:
        kind, seed = json.loads(line)
        write_input(kind, seed, folder)
        started = time.process_time()
        outcome, message = read_input(kind, folder)
        seconds = time.process_time() - started  # of the CPU: the parent counts the others
        print(json.dumps([outcome, message[-3000:], seconds, peak_memory()]), file=out, flush=True)


_PLANTED: dict[str, Callable[[Path], object]] = {
    "traceback": lambda folder: 1 / 0,
    "hang": lambda folder: time.sleep(60),
    "death": lambda folder: os.kill(os.getpid(), 9),
    "memory": lambda folder: bytearray(MAX_MEMORY + (200 << 20)),
}


def limit_memory() -> None:
    """Let a system that can refuse memory beyond the limit."""
    try:
        import resource
    except ImportError:  # Windows: the parent measures
        return
    limit = psutil.Process().memory_info().vms + MAX_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def peak_memory() -> int:
    """Return the most memory in bytes that this process has had at once, where the system counts it."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
