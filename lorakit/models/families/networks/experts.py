"""Two denoisers, each for its own noise levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ExpertRows:
    """Rows of a batch that one expert predicts."""

    network: Any
    rows: torch.Tensor
    """Row numbers (n,)."""


class NoiseLevelExperts(nn.Module):
    """`transformer` for noise levels from `boundary` (0..1) upwards, `transformer_2` for those below.

    The parts keep the names of their components, so that an adapter file tells them apart.
    """

    def __init__(self, transformer: Any, transformer_2: Any, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = transformer, transformer_2, boundary

    @property
    def dtype(self) -> torch.dtype:
        """Data type of both."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    @property
    def config(self) -> Any:
        """Configuration of both."""
        return self.transformer.config

    def split_rows(self, timesteps: torch.Tensor) -> Iterator[ExpertRows]:
        """Assign rows to experts by their timesteps (B,) of 0 to 1000; experts without rows are left out."""
        high = timesteps >= self.boundary * 1000
        for expert, selected in ((self.transformer, high), (self.transformer_2, ~high)):
            if selected.any():
                yield ExpertRows(expert, selected.nonzero()[:, 0])
