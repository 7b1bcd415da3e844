"""The settings that make a training step fast on a device, all of them decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FIXED_TEXT_MULTIPLE = 64
"""Tokens that texts are padded to a multiple of where each new shape costs a compilation or a CUDA graph."""


@dataclass(frozen=True)
class Kernels:
    """The kernels that a device computes with; each choice rounds in its own way."""

    attention: str = "default"
    """Implementation of attention that is used where it supports the inputs: a key of `ATTENTION_ORDER`."""
    channels_last: bool = False
    """Convolutions with the channels of a pixel side by side in memory."""
    tf32: bool = False
    """Products of float32, which half-precision networks have few of, in TensorFloat-32."""

    def __str__(self) -> str:
        parts = [f"attention {self.attention}"]
        parts += ["channels last"] if self.channels_last else []
        return ", ".join(parts + (["TF32"] if self.tf32 else []))


@dataclass(frozen=True)
class AccelerationSettings:
    """The settings of a run. All but `cuda_graph` decide how results are rounded, so a run keeps them."""

    compile: bool = False
    """Repeated blocks are compiled."""
    cuda_graph: bool = False
    """Forward and backward passes of a shape are recorded once and replayed."""
    text_multiple: int = 1
    """Texts with a mask are padded to a multiple of this many tokens."""
    kernels: Kernels = field(default_factory=Kernels)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AccelerationSettings:
        """Restore what `to_json` returned; raises TypeError or KeyError for anything else."""
        return cls(**{**values, "kernels": Kernels(**values["kernels"])})
