"""Loss scaling for `train.precision: fp16`, whose numbers below 6e-8 are zero and above 65,504 infinite.

The loss is multiplied by the scale before the backward pass and the gradients are divided by it afterwards.
If they overflow, the same step is computed again with half the scale, so that no sample is lost. The scale is
a power of two, so it rounds nothing, and it belongs to the state of a checkpoint. Mixed-precision training:
arXiv:1710.03740.
"""

from __future__ import annotations

from dataclasses import dataclass

INITIAL_SCALE = 2.0**16
MAX_SCALE = 2.0**24
MIN_SCALE = 1.0  # gradients that overflow without any scaling are not the scale's fault
GROWTH_STEPS = 500  # steps without overflow until the scale is doubled


@dataclass
class LossScale:
    """The factor on the loss, and the number of steps since it changed last."""

    value: float = INITIAL_SCALE
    good_steps: int = 0

    def shrink(self) -> bool:
        """Halve the scale after an overflow; return False if it is at its minimum already."""
        if self.value <= MIN_SCALE:
            return False
        self.value, self.good_steps = self.value / 2, 0
        return True

    def count_good_step(self) -> None:
        """Count a step without overflow; after `GROWTH_STEPS` of them the scale doubles."""
        self.good_steps += 1
        if self.good_steps >= GROWTH_STEPS:
            self.value, self.good_steps = min(2 * self.value, MAX_SCALE), 0
