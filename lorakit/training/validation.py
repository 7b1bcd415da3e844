"""The validation loss: the one definition of it, for runs and for their evaluation.

It is the training loss of images at noise that depends on the image's number alone, and at timesteps that are
the same for every checkpoint, one in each quarter of the timestep distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorakit.core import rng
from lorakit.core.progress import track_progress
from lorakit.data.dataset import TrainingSet
from lorakit.training.losses import DenoisingLoss

TIMESTEPS_PER_IMAGE = 4


class ValidationLoss:
    """The validation loss of the images in `data`, with the weights that `loss` has at the time."""

    def __init__(self, loss: DenoisingLoss, data: TrainingSet) -> None:
        self.loss, self.data = loss, data

    def image_losses(self, *, quiet: bool = False) -> list[float]:
        """The loss of each image."""
        return [sum(losses) / len(losses) for losses in self._losses(None, quiet=quiet)]

    def mean(self, images: Sequence[int] | None = None) -> float:
        """The mean loss of the images with these indices; None: of all, with progress."""
        losses = [loss for image in self._losses(images, quiet=images is not None) for loss in image]
        return sum(losses) / len(losses)

    @torch.no_grad()
    def _losses(self, images: Sequence[int] | None, *, quiet: bool) -> list[list[float]]:
        """The losses of each image by timestep; measured one at a time, so that no batch changes them."""
        images = range(len(self.data.items)) if images is None else images
        return [
            [self._loss(image, part) for part in range(TIMESTEPS_PER_IMAGE)]
            for image in track_progress(images, "validation", len(images), quiet=quiet)
        ]

    def _loss(self, image: int, part: int) -> float:
        position = image * TIMESTEPS_PER_IMAGE + part
        uniform = (part + rng.keyed_uniform(0, "validation time", position)) / TIMESTEPS_PER_IMAGE
        sample = self.data.sample_as_written(position, image)
        return float(self.loss(self.data, [sample], "validation", [uniform])[0])
