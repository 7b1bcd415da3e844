"""The sanity check before step 1: does the base model predict the target that it is about to be trained on?

A base model that was trained for the objective does far better, without the adapter, than a network that
predicts zero. One that does not, but fits another target well, has a wrong scheduler configuration, and
training would destroy what it knows: that is an error. One that fits no target has random weights, which is
allowed: a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lorakit.core import rng
from lorakit.core.errors import ConfigError
from lorakit.data.dataset import TrainingSet
from lorakit.training.losses import DenoisingLoss

QUANTILES = (0.125, 0.375, 0.625, 0.875)  # uniform numbers from which the timesteps come
NUM_IMAGES = 2
MAX_RELATIVE_ERROR = 0.7  # of a network that predicts zero
MISMATCH_RATIO = 0.5  # of the errors of a zero predictor and for the declared target: another is the true one


@dataclass(frozen=True)
class ObjectiveCheck:
    """The base model's squared error for each target, relative to that of a network that predicts zero."""

    prediction_type: str
    """The target that the scheduler's configuration declares."""
    relative_errors: dict[str, float]

    @property
    def relative_error(self) -> float:
        """The relative error for the declared target."""
        return self.relative_errors[self.prediction_type]

    @property
    def passed(self) -> bool:
        """True if the base model fits the declared target."""
        return self.relative_error <= MAX_RELATIVE_ERROR

    @property
    def summary(self) -> str:
        """One line for the log."""
        text = (
            f"the base model's own loss is {self.relative_error:.2f} of a zero predictor's"
            f" ({self.prediction_type})"
        )
        if self.passed:
            return text
        return f"warning: {text}: its weights are random, or it was not trained for images like these"

    def to_json(self) -> dict[str, Any]:
        """The entry in run.json."""
        errors = {name: round(error, 4) for name, error in self.relative_errors.items()}
        return {"prediction_type": self.prediction_type, "relative_errors": errors, "passed": self.passed}


def check_objective(loss: DenoisingLoss, data: TrainingSet) -> ObjectiveCheck:
    """Measure the base model at fixed timesteps, on a few images with keyed noise; changes nothing.

    Raises ConfigError when it fits another target than its scheduler's configuration declares.
    """
    seed = rng.derive_seed(loss.recipe.train.seed, "probe")
    order = rng.epoch_permutation(len(data.items), seed, 0)[:NUM_IMAGES]
    sums: dict[str, float] = {}
    for number, image in enumerate(order):
        for index, quantile in enumerate(QUANTILES):
            sample = data.sample_as_written(number * len(QUANTILES) + index, image)
            batch = loss.add_noise(data, [sample], "probe", [quantile])
            prediction = loss.predict_without_adapter(batch).float()
            targets = loss.objective.targets(batch.latents, batch.noise, batch.timesteps)
            for name, target in targets.items():
                sums[name] = sums.get(name, 0.0) + _relative_error(prediction, target.float())
    count = len(order) * len(QUANTILES)
    errors = {name: total / count for name, total in sums.items()}
    check = ObjectiveCheck(loss.objective.prediction_type, errors)
    _refuse_mismatch(check)
    return check


def _relative_error(prediction: torch.Tensor, target: torch.Tensor) -> float:
    return float((prediction - target).square().mean() / target.square().mean().clamp(min=1e-12))


def _refuse_mismatch(check: ObjectiveCheck) -> None:
    best = min(check.relative_errors, key=lambda name: check.relative_errors[name])
    if check.relative_errors[best] < MISMATCH_RATIO * min(1.0, check.relative_error):
        raise ConfigError(
            f"the base's scheduler says that it predicts {check.prediction_type}, but its predictions are"
            f" {best}: their error is {check.relative_errors[best]:.2f} of a zero predictor's, against"
            f" {check.relative_error:.2f} for {check.prediction_type}",
            where="base: scheduler/scheduler_config.json",
            remedy=f"correct prediction_type there (in a copy of the base: {best}), or use another base",
        )
