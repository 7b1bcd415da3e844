"""Recipe section `objective`: timestep distribution, loss weighting, masked loss and regularization.

Contradictions that need no base model are refused here, the others by `training.objective`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lorakit.config.fields import NonNegativeFloat, PositiveFloat, RecipeSection

DEFAULT_GAMMA = 5.0  # arXiv:2303.09556
DEFAULT_MODE_SCALE = 1.29  # arXiv:2403.03206
MAX_MODE_SCALE = 2 / (math.pi - 2)  # above this the function is not monotonic


class MaskedLossConfig(RecipeSection):
    """Loss weighted by the masks of the dataset; an image without a mask counts fully."""

    unmasked_weight: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """Weight of the loss outside the mask (inside it is 1); 0 ignores the outside exactly."""
    output_preservation: NonNegativeFloat = 0.0
    """Weight of a loss that keeps the prediction outside the mask equal to that of the base model without the
    adapter."""
    normalize_area: Annotated[bool, Field(strict=True)] = True
    """Divide the loss by the area of the mask, so that a small subject counts as much as a large one."""
    gray_unmasked: Annotated[bool, Field(strict=True)] = False
    """Paint everything outside the mask gray before the VAE, so that the denoiser never sees it."""

    @model_validator(mode="after")
    def _agree(self) -> MaskedLossConfig:
        if self.gray_unmasked and self.unmasked_weight:
            raise ValueError(
                f"gray_unmasked paints everything outside the mask gray, and unmasked_weight"
                f" ({self.unmasked_weight:g}) would train on that gray"
            )
        return self


class HuberConfig(RecipeSection):
    """Pseudo-Huber loss 2 c (sqrt(e^2 + c^2) - c), robust to outliers (arXiv:2403.16728)."""

    c: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.1
    """Errors well below c count squared, errors well above c count linearly."""
    schedule: Literal["constant", "exponential", "snr"] = "exponential"
    """c by noise level: constant, or from 1 without noise down to c, exponentially or by the
    signal-to-noise ratio."""


class ObjectiveConfig(RecipeSection):
    """Training objective: what is not set is read from the base model's scheduler."""

    timesteps: Literal["auto", "uniform", "logit_normal", "mode"] = "auto"
    """Timestep distribution; auto is uniform for ddpm and logit_normal for flow matching; `mode` prefers the
    middle timesteps but keeps both ends."""
    logit_mean: Annotated[float, Field(ge=-10, le=10, strict=True)] | None = None
    """For logit_normal: mean of the logit; above 0 means more noise; null means 0."""
    logit_std: Annotated[float, Field(gt=0, le=10, strict=True)] | None = None
    """For logit_normal: standard deviation of the logit; null means 1."""
    mode_scale: Annotated[float, Field(ge=-1, le=MAX_MODE_SCALE, strict=True)] | None = None
    """For mode: preference for the middle timesteps, -1 to 1.75; null means 1.29."""
    stratified_timesteps: Annotated[bool, Field(strict=True)] = False
    """Divide the distribution into as many equal parts as a step has images and take one timestep from
    each."""
    shift: Literal["resolution"] | PositiveFloat | None = None
    """Flow matching only: shift of the timesteps towards noise; null means the base model's own static shift;
    `resolution` lets it grow with the number of image tokens, as the base model's scheduler does."""
    weighting: Literal["none", "min_snr", "debiased", "sigma_sqrt", "cosmap"] = "none"
    """Loss weight by noise level; sigma_sqrt and cosmap are for flow matching only."""
    min_snr_gamma: PositiveFloat | None = None
    """For min_snr: signal-to-noise ratio above which weights are clamped; null means 5."""
    noise_offset: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """Standard deviation of a constant added to each channel of the noise, for very dark or bright styles;
    0.05 to 0.1 is usual."""
    huber: HuberConfig | None = None
    """Pseudo-Huber loss instead of the squared error: a section, {} for its defaults; null means squared."""
    masked_loss: MaskedLossConfig | None = None
    """Weight the loss by the masks of the dataset: a section, {} for its defaults; null ignores masks."""
    prior_loss_weight: PositiveFloat = 1.0
    """Weight of the prior-preservation loss on `class_images` (the loss on the dataset has weight 1)."""
    output_preservation: NonNegativeFloat = 0.0
    """Weight of a loss that keeps predictions for captions with the class noun instead of the trigger equal
    to those of the base model without the adapter; costs two more forward passes per step."""

    @model_validator(mode="after")
    def _agree(self) -> ObjectiveConfig:
        if self.min_snr_gamma is not None and self.weighting != "min_snr":
            raise ValueError(f"objective.min_snr_gamma is for weighting: min_snr, not {self.weighting}")
        if self.mode_scale is not None and self.timesteps != "mode":
            raise ValueError(f"objective.mode_scale is for timesteps: mode, not {self.timesteps}")
        for key in ("logit_mean", "logit_std"):
            # the base model decides what `auto` means
            if getattr(self, key) is not None and self.timesteps not in ("logit_normal", "auto"):
                raise ValueError(f"objective.{key} is for timesteps: logit_normal, not {self.timesteps}")
        return self
