"""A training run whose second process fails, or whose gradients overflow, at step 5.

Usage: `python -m torch.distributed.run ... -m tests.training.two_processes FAULT RECIPE`.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from lorakit.core.errors import NumericError
from lorakit.training import train
from lorakit.training.step import TrainingStep
from lorakit.training.step_result import StepResult


def kill() -> None:
    """Kill this process, as the system kills one that uses too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    """Raise an error of lorakit."""
    raise NumericError("a fault of the second process")


def crash() -> None:
    """Raise an error of a library."""
    raise ZeroDivisionError("a bug in the second process")


def overflow() -> None:
    """Let the gradients of fp16 overflow while the loss scale is above 2**14."""
    plain = TrainingStep.reduce_and_clip

    def reduce_and_clip(self: TrainingStep, loss: torch.Tensor) -> StepResult:
        scale = self.state.loss_scale
        if self.state.step == 5 and scale is not None and scale.value > 2**14:
            self.parameters.gradients.fill_(torch.inf)
        return plain(self, loss)

    TrainingStep.reduce_and_clip = reduce_and_clip  # type: ignore[method-assign]


FAULTS = {"kill": kill, "refuse": refuse, "crash": crash, "overflow": overflow}


def main(fault: str | None, recipe: str) -> int:
    """Train, with the fault if there is one."""
    plain = TrainingStep.run

    def run(self: TrainingStep) -> StepResult:
        if fault and self.state.step == 5 and self.accelerator.process_index == 1:
            FAULTS[fault]()
        return plain(self)

    TrainingStep.run = run  # type: ignore[method-assign]
    return train.main([recipe])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
