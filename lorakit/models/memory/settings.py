"""Memory settings of a run, all of them decided: the recipe's, and the planner's for the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Quantization = Literal["nf4", "int8", "fp8"]


@dataclass(frozen=True)
class MemorySettings:
    """Forms and places of the frozen weights and of the activations while a network is trained.

    Only `quantize` changes results; the others trade memory for time.
    """

    quantize: Quantization | None = None
    """Data type of the linear layers of repeated blocks; None keeps the precision of the training."""
    stream: float = 0.0
    """Share of the repeated blocks, 0 to 1, whose weights stay in host memory and visit the device."""
    gradient_checkpointing: float = 0.0
    """Share of the repeated blocks, 0 to 1, that recompute their activations in the backward pass."""
    offload_activations: bool = False
    """The activations that are kept between blocks wait in host memory for the backward pass."""
    offload_modulation: bool = False
    """Modulation layers (AdaLN), which see one vector and no tokens, stay and are computed in host memory."""

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)
