"""A run as the planner sees it: its network counted, and everything else that needs memory or time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorakit.models.memory import optimizer_state_bytes
from lorakit.planner.network_count import NetworkCount
from lorakit.planner.pass_times import PassTimes

FLOAT32 = 4


@dataclass(frozen=True)
class RunDemand:
    """Needs of a run under any memory settings."""

    network: NetworkCount
    """The denoiser at the run's largest bucket."""
    batch_size: int = 1
    """Images per forward pass that the recipe asks for."""
    accumulate: int = 1
    steps: int = 1500
    optimizer: str = "adamw8bit"
    averaged: bool = False
    """True with a moving average of the adapter."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Bytes of other networks that stay on the device, such as the VAE for samples."""
    others_trained: int = 0
    """Trainable parameters of those."""
    mean_area: float = 1.0
    """Mean area of the images, as a share of the largest bucket's."""
    passes: float = 1.0
    """Training passes for each image: one more for class images, and about half for output preservation."""
    times: PassTimes | None = None
    """Times of the pass, if they were measured on the machine that is planned for."""

    @property
    def trained(self) -> int:
        """All trainable parameters."""
        return self.network.trained + self.others_trained

    def adapter_bytes(self) -> dict[str, int]:
        """Return the bytes of the trainable parameters, their gradients and the optimizer's states.

        The optimizer works in float32. A half-precision network computes with a copy of the parameters. Their
        gradients exist twice: as the backward pass computes them, and added up for the optimizer.
        """
        count, itemsize = self.trained, self.network.itemsize
        return {
            "adapter": count * (FLOAT32 + (itemsize if itemsize < FLOAT32 else 0)),
            "gradients": count * (FLOAT32 + itemsize),
            "optimizer": count * (optimizer_state_bytes(self.optimizer) + FLOAT32 * self.averaged),
        }
