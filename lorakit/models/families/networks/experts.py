"""Two denoisers that share the noise levels out between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class NoiseLevelExperts(nn.Module):
    """`transformer` for noise levels from `boundary` (0..1) upwards, `transformer_2` for those below.

    The parts keep the names of their components, so that an adapter's file tells them apart.
    """

    def __init__(self, transformer: Any, transformer_2: Any, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = transformer, transformer_2, boundary

    @property
    def dtype(self) -> torch.dtype:
        """The precision that both share."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    @property
    def config(self) -> Any:
        """The settings that both share."""
        return self.transformer.config

    def enable_gradient_checkpointing(self, function: Any = None) -> None:
        """Recompute activations in both."""
        for expert in (self.transformer, self.transformer_2):
            expert.enable_gradient_checkpointing(function)

    def rows(self, t: torch.Tensor) -> Iterator[tuple[Any, torch.Tensor]]:
        """(expert, numbers of its rows) for times (B,) in thousandths; an expert without rows is left out."""
        high = t >= self.boundary * 1000
        for expert, mine in ((self.transformer, high), (self.transformer_2, ~high)):
            if mine.any():
                yield expert, mine.nonzero()[:, 0]
