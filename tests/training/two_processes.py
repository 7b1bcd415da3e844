"""A training run whose second process fails at step 5.

Usage: `python -m torch.distributed.run ... -m tests.training.two_processes FAULT RECIPE`.
"""

from __future__ import annotations

import os
import signal
import sys

from lorakit.core.errors import NumericError
from lorakit.training import train
from lorakit.training.trainer import Trainer


def kill() -> None:
    """As the system does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    """An error of ours."""
    raise NumericError("a fault of the second process")


def crash() -> None:
    """An error of a library."""
    raise ZeroDivisionError("a bug in the second process")


def main(fault: str | None, recipe: str) -> int:
    """Train, with the fault if there is one."""
    plain = Trainer.step

    def step(self: Trainer) -> tuple[float, float]:
        if fault and self.state.step == 5 and self.accelerator.process_index == 1:
            {"kill": kill, "refuse": refuse, "crash": crash}[fault]()
        return plain(self)

    Trainer.step = step  # type: ignore[method-assign]
    return train.main([recipe])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
