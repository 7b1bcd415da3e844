"""The averaged weights of an adapter: those that samples, validation and files use while it is trained.

They are a moving average (`train.ema_decay`, diffusers' `EMAModel`) or the average of a schedule-free
optimizer (its `eval` mode). The trained weights come back bit for bit: looking at a run changes none of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lorakit.core.errors import DataError
from lorakit.training.flat_parameters import FlatParameters
from lorakit.training.optimizer_state import FlatState, optimizer_parts

AVERAGE, TRAINED, COUNT = "average|", "trained|", "average steps"


class AveragedWeights:
    """The averages of the parameters of a run, if it has any."""

    def __init__(self, parameters: FlatParameters, optimizer: Any, ema_decay: float | None) -> None:
        self.parameters = parameters
        parts = optimizer_parts(optimizer)
        self._modal: list[Any] = [p for p in parts if hasattr(p, "train") and hasattr(p, "eval")]
        self._ema: Any = None
        for part in self._modal:
            part.train()
        if ema_decay is not None:
            from diffusers.training_utils import EMAModel

            self._values = torch.nn.Parameter(parameters.values)
            self._ema = EMAModel([self._values], decay=ema_decay)

    @property
    def exists(self) -> bool:
        """True if the run has averages."""
        return bool(self._modal) or self._ema is not None

    def update(self) -> None:
        """Add the weights after a step to the moving average; a skipped step adds them once more."""
        if self._ema is not None:
            self._ema.step([self._values])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters within the block, and the trained weights back afterwards."""
        if not self.exists:
            yield
            return
        trained = self.parameters.values.clone()
        for part in self._modal:
            part.eval()
        if self._ema is not None:
            self._ema.copy_to([self._values])
        self.parameters.refresh_copies()
        try:
            yield
        finally:
            for part in self._modal:
                part.train()
            self.parameters.values.copy_(trained)
            self.parameters.refresh_copies()

    def state_dict(self) -> FlatState:
        """Return what a checkpoint needs beside the optimizer's state and the averages in its adapter."""
        if not self.exists:
            return {}
        flat = self._named(TRAINED, self.parameters.values)
        if self._ema is not None:
            flat |= self._named(AVERAGE, self._ema.shadow_params[0])
            flat[COUNT] = torch.tensor(self._ema.optimization_step)
        return flat

    def _named(self, prefix: str, buffer: torch.Tensor) -> FlatState:
        views = self.parameters.named_views(buffer)
        return {f"{prefix}{name}": view.detach().cpu().clone() for name, view in views}

    def load_state_dict(self, flat: Mapping[str, torch.Tensor]) -> None:
        """Restore the trained weights and averages; DataError if a checkpoint has none."""
        if not self.exists:
            return
        missing = [name for name, _ in self.parameters.named if f"{TRAINED}{name}" not in flat]
        if missing or (self._ema is not None and COUNT not in flat):
            raise DataError("the checkpoint has no averaged weights", where=", ".join(missing[:5]))
        self._restore(TRAINED, self.parameters.values, flat)
        self.parameters.refresh_copies()
        if self._ema is not None:
            self._restore(AVERAGE, self._ema.shadow_params[0], flat)
            self._ema.optimization_step = int(flat[COUNT])

    def _restore(self, prefix: str, buffer: torch.Tensor, flat: Mapping[str, torch.Tensor]) -> None:
        for name, view in self.parameters.named_views(buffer):
            view.copy_(flat[f"{prefix}{name}"])


def is_average_key(key: str) -> bool:
    """Return True for a tensor of a checkpoint that belongs to the averages."""
    return key == COUNT or key.startswith((AVERAGE, TRAINED))
