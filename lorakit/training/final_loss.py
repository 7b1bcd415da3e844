"""Loss at the end of a run, with the adapter and without it, on the same images and noise.

An adapter whose loss on its own training images is above the base model's has learned nothing: the learning
rate was too high, or the run was too short after a bad start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorakit import adapters
from lorakit.data.dataset import TrainingSet
from lorakit.training.losses import DenoisingLoss
from lorakit.training.setup import Session
from lorakit.training.validation import ValidationLoss

NUM_IMAGES = 4
"""Images measured of the training images, and of the held-out ones."""
TOLERANCE = 0.01
"""Relative difference below which two losses are called equal."""


@dataclass(frozen=True)
class FinalLoss:
    """Mean losses of some training images, and of some held-out images if there are any."""

    base: float
    adapter: float
    held_out_base: float | None = None
    held_out_adapter: float | None = None

    @property
    def is_worse(self) -> bool:
        """True if the adapter is worse than the base model on the training images."""
        return not self.adapter <= self.base * (1 + TOLERANCE)

    @property
    def overfits(self) -> bool:
        """True if the adapter is better on the training images and worse on the held-out ones."""
        if self.held_out_base is None or self.held_out_adapter is None or self.is_worse:
            return False
        return self.held_out_adapter > self.held_out_base * (1 + TOLERANCE)

    def to_json(self) -> dict[str, Any]:
        """Return the entry in run.json."""
        return {key: round(value, 5) for key, value in vars(self).items() if value is not None}

    def summary(self, lr: float) -> str:
        """Return the line for the log; `lr` is the run's learning rate."""
        losses = f"loss on training images: base model {self.base:.4f}, with the adapter {self.adapter:.4f}"
        if self.held_out_base is not None and self.held_out_adapter is not None:
            losses += f"; on held-out images: {self.held_out_base:.4f}, {self.held_out_adapter:.4f}"
        if self.is_worse:
            return (
                f"warning: the adapter is worse than the base model on its own training images ({losses});"
                f" use a lower optimizer.lr than {lr:g} in a new run"
            )
        if self.overfits:
            return f"warning: the adapter overfits: worse than the base model on held-out images ({losses})"
        return losses


def measure_final_loss(session: Session, loss: DenoisingLoss) -> FinalLoss | None:
    """Measure a session's adapters; None for a slider, whose loss compares no images."""
    if session.recipe.slider:
        return None
    training = _losses(session, loss, session.train_set)
    held_out = _losses(session, loss, session.held_out_set) if session.held_out_set.items else (None, None)
    return FinalLoss(*training, *held_out)


def _losses(session: Session, loss: DenoisingLoss, data: TrainingSet) -> tuple[float, float]:
    """Return the mean losses of the base model and of the adapter."""
    count = len(data.items)
    images = sorted({count * number // NUM_IMAGES for number in range(NUM_IMAGES)})
    validation = ValidationLoss(loss, data)
    with_adapter = validation.mean(images)
    with adapters.adapters_disabled(*session.networks.values()):
        return validation.mean(images), with_adapter
