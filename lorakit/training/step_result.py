"""The batches that a step consists of, and its numbers, which are read when they have arrived."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorakit.data.batch_sampler import SampleIndex
from lorakit.models import device as devices
from lorakit.training.losses import LossTerm
from lorakit.training.prefetch import BatchRequest


class StepResult:
    """The mean loss of a step, and its gradient norm before clipping: on the device until they are read."""

    def __init__(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """`loss` and `grad_norm` are scalars; `step` counts from 0."""
        numbers = torch.stack([loss.detach(), grad_norm])
        self.step = step
        self._on_device = numbers
        self.numbers = devices.PendingNumbers(numbers)
        self.learning_rates: dict[str, float] = {}
        self.loss_scale: float | None = None

    @property
    def is_finite_on_device(self) -> torch.Tensor:
        """A boolean scalar: whether the step can be taken, without a wait for the device."""
        return torch.isfinite(self._on_device).all()

    @property
    def loss(self) -> float:
        """The mean loss; waits for the device if the number has not arrived."""
        return self.numbers.read()[0]

    @property
    def grad_norm(self) -> float:
        """The gradient norm before clipping; waits for the device if the number has not arrived."""
        return self.numbers.read()[1]

    @property
    def is_finite(self) -> bool:
        """True if the step can be taken; waits for the device if the numbers have not arrived."""
        return all(map(math.isfinite, self.numbers.read()))


@dataclass(frozen=True)
class StepBatches:
    """The forward passes of one process's share of a step: each a term, its samples and their uniforms."""

    samples: Sequence[SampleIndex]
    micro_batch_size: int
    passes: list[tuple[LossTerm, list[SampleIndex], list[float]]]

    def requests(self) -> list[BatchRequest]:
        """Return what the forward passes load."""
        return [
            BatchRequest.of(term.data, batch, term.noise_purpose, uniforms, term.transform)
            for term, batch, uniforms in self.passes
        ]
