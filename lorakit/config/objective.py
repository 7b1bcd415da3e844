"""The recipe's `objective`: what is otherwise read from the base model, and what may be added to the loss.

What can be judged without the base is refused here, the rest by `objective.from_scheduler`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lorakit.config.fields import Fraction, NonNegativeFloat, PositiveFloat, RecipeSection

DEFAULT_GAMMA = 5.0  # of the paper, arXiv:2303.09556
DEFAULT_MODE_SCALE = 1.29  # of the paper, arXiv:2403.03206
MAX_MODE_SCALE = 2 / (math.pi - 2)  # beyond it the paper's function is no longer one to one


class MaskedLossConfig(RecipeSection):
    """Where a picture counts: the masks of the dataset's manifest; a picture without one counts whole."""

    outside: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """Weight of what lies outside, beside 1 inside; 0 ignores it exactly."""
    prior: NonNegativeFloat = 0.0
    """Weight of keeping the prediction outside at that of the base without the adapter."""
    normalise: Annotated[bool, Field(strict=True)] = True
    """Divide by the mask's area, so that a small subject counts as much as a large one."""
    hide: Annotated[bool, Field(strict=True)] = False
    """Paint the outside grey before the autoencoder, so that the network never sees it."""

    @model_validator(mode="after")
    def _agree(self) -> MaskedLossConfig:
        if self.hide and self.outside:
            raise ValueError(f"hide paints the outside grey, and outside ({self.outside:g}) would teach that")
        return self


class HuberConfig(RecipeSection):
    """The pseudo-Huber loss 2 c (sqrt(e^2 + c^2) - c), robust to outliers; arXiv:2403.16728."""

    c: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.1
    """Errors well below c are squared, those well above it count by their size."""
    schedule: Literal["constant", "exponential", "snr"] = "exponential"
    """c at a noise level: the same at all, or 1 without noise that falls to c exponentially or with
    the signal."""


class ObjectiveConfig(RecipeSection):
    """Overrides of what is otherwise read from the base model, and additions to the loss."""

    timesteps: Literal["auto", "uniform", "logit-normal", "mode"] = "auto"
    """Distribution of the noise level; auto is uniform for ddpm and logit-normal for flow matching; `mode`
    favours the middle but keeps the ends."""
    logit_mean: Annotated[float, Field(ge=-10, le=10, strict=True)] | None = None
    """For logit-normal: mean of the logit; above 0 means more noise; none means 0."""
    logit_std: Annotated[float, Field(gt=0, le=10, strict=True)] | None = None
    """For logit-normal: standard deviation of the logit; none means 1."""
    mode_scale: Annotated[float, Field(ge=-1, le=MAX_MODE_SCALE, strict=True)] | None = None
    """For mode: how much the middle is favoured, -1 to 1.75; none means 1.29."""
    stratified: Annotated[bool, Field(strict=True)] = False
    """Spread the noise levels of a step's images: one in each of as many equal parts of the distribution."""
    shift: Literal["resolution"] | PositiveFloat | None = None
    """Flow matching only: shift of the noise level towards noise; none means the base's own static shift;
    `resolution` grows with the picture's tokens, as the base's scheduler says."""
    weighting: Literal["none", "min-snr", "debiased", "sigma-sqrt", "cosmap"] = "none"
    """Weight of the loss by noise level; sigma-sqrt and cosmap for flow matching only."""
    gamma: PositiveFloat | None = None
    """For min-snr: the signal-to-noise ratio from which weights stay level; none means 5."""
    noise_offset: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """Standard deviation of a constant added to each channel of the noise, for very dark or bright styles;
    0.05 to 0.1 is usual."""
    huber: HuberConfig | None = None
    """Pseudo-Huber in place of the squared error: a section, {} for its defaults."""
    mask: MaskedLossConfig | None = None
    """Weigh the loss by the dataset's masks: a section, {} for its defaults."""
    caption_dropout: Fraction = 0.0
    """Share of the images that are shown with the empty caption."""
    class_weight: PositiveFloat = 1.0
    """Weight of the `class_images` beside 1 for the dataset's own."""
    preserve: NonNegativeFloat = 0.0
    """Weight of keeping predictions, for captions with the class noun for the trigger, at those of the base
    without the adapter; costs two more forward passes a step."""

    @model_validator(mode="after")
    def _agree(self) -> ObjectiveConfig:
        if self.gamma is not None and self.weighting != "min-snr":
            raise ValueError(f"objective.gamma is for weighting: min-snr, not {self.weighting}")
        if self.mode_scale is not None and self.timesteps != "mode":
            raise ValueError(f"objective.mode_scale is for timesteps: mode, not {self.timesteps}")
        for key in ("logit_mean", "logit_std"):
            # what `auto` stands for is known with the base
            if getattr(self, key) is not None and self.timesteps not in ("logit-normal", "auto"):
                raise ValueError(f"objective.{key} is for timesteps: logit-normal, not {self.timesteps}")
        return self
