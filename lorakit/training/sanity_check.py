"""Before step 1: does the base, without the adapter, predict what it is about to be trained on?

A base that was trained for the objective does far better than a network that says zero. One that does not,
but fits another target well, is misdescribed by its scheduler's configuration, and training would unlearn
what it knows: that is an error. One that fits nothing has random weights, which is legitimate: a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lorakit.core import rng
from lorakit.core.errors import ConfigError
from lorakit.data import batch_sampler
from lorakit.training.losses import TrainingLoss

QUANTILES = (0.125, 0.375, 0.625, 0.875)
NUM_IMAGES = 2
MAX_RELATIVE_ERROR = 0.7  # of a zero predictor's loss
MISMATCH_RATIO = (
    0.5  # of a zero predictor's loss and of that for the declared target: another is the true one
)


@dataclass(frozen=True)
class ObjectiveCheck:
    """The base's squared error against each target, as a share of that of a network that says zero."""

    declared: str
    shares: dict[str, float]

    @property
    def share(self) -> float:
        """Against the declared target."""
        return self.shares[self.declared]

    @property
    def text(self) -> str:
        """One line for the log."""
        found = f"the base's own loss is {self.share:.2f} of a zero predictor's ({self.declared})"
        if self.share <= MAX_RELATIVE_ERROR:
            return found
        return f"warning: {found}: its weights are random, or it was not trained for pictures like these"

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        shares = {name: round(share, 4) for name, share in self.shares.items()}
        return {"declared": self.declared, "shares": shares, "good": self.share <= MAX_RELATIVE_ERROR}


def check_objective(cost: TrainingLoss) -> ObjectiveCheck:
    """Measure at fixed times, on a few pictures with keyed noise; changes nothing.

    Raises ConfigError when the base fits another target than its scheduler's configuration declares.
    """
    data, objective, seed = cost.made.train, cost.made.objective, cost.made.recipe.train.seed
    order = rng.epoch_permutation(len(data.items), rng.derive_seed(seed, "probe"), 0)[:NUM_IMAGES]
    sums: dict[str, float] = {}
    for number, image in enumerate(order):
        for index, time in enumerate(QUANTILES):
            slot = batch_sampler.SampleIndex(number * len(QUANTILES) + index, image, 0)
            given = cost.noised(data, [slot], "probe", [time])
            prediction = cost.untrained(given).float()
            targets = objective.targets(given.latents, given.noise, given.t)
            for name, target in targets.items():
                sums[name] = sums.get(name, 0.0) + _relative_error(prediction, target.float())
    count = len(order) * len(QUANTILES)
    found = ObjectiveCheck(objective.prediction, {name: total / count for name, total in sums.items()})
    _check(found)
    return found


def _relative_error(prediction: torch.Tensor, target: torch.Tensor) -> float:
    return float((prediction - target).square().mean() / target.square().mean().clamp(min=1e-12))


def _check(found: ObjectiveCheck) -> None:
    best = min(found.shares, key=lambda name: found.shares[name])
    if found.shares[best] < MISMATCH_RATIO * min(1.0, found.share):
        raise ConfigError(
            f"the base's scheduler says that it predicts {found.declared}, but its predictions are"
            f" {best}: their error is {found.shares[best]:.2f} of a zero predictor's, against"
            f" {found.share:.2f} for {found.declared}",
            where="base: scheduler/scheduler_config.json",
            remedy=f"correct prediction_type there (a copy of the base with {best}), or take another base",
        )
