"""Two processes of a training without a launcher, forked from a server that has imported everything."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from tests import runs


def join(rank: int, port: int) -> None:
    """Make this process the `rank`-th of two, as a launcher would."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})


def run_both(target: Callable[..., object], *arguments: object) -> list[int | None]:
    """Run `target(rank, port, *arguments)` in two processes without a launcher; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [runs._CONTEXT.Process(target=target, args=(rank, port, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    return [process.exitcode for process in processes]
