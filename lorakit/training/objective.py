"""The training objectives: flow matching and ddpm, read from the base's scheduler, never from a flag.

`noise` maps clean latents, noise and one uniform number a sample to (noisy latents, time, target); `loss`
compares the model's prediction with the target. Both are pure. Time is in scheduler units: ddpm 0..T-1
(integers), flow 0..1000.

Sources: DDPM, arXiv:2006.11239; v-prediction, arXiv:2202.00512; zero-terminal SNR, arXiv:2305.08891;
rectified flow and logit-normal times, arXiv:2403.03206. Times are in `timesteps`, weights in `weighting`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.config.recipe import ObjectiveConfig as Settings
from lorakit.core.errors import ConfigError
from lorakit.training import loss_weighting, timesteps

Noised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Levels = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(share, signal, spread), each (B,) in float64: place on the time axis, and x_t = signal x + spread n."""


@dataclass(frozen=True)
class Objective(ABC):
    """What a base is trained on."""

    settings: Settings
    spread: timesteps.TimestepDistribution
    weight: loss_weighting.LossWeight | None
    prediction: str
    """Which of `targets` the network predicts."""

    @abstractmethod
    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """`latents`, `noise` (B, C, ..., H, W); `u` (B,) uniform in [0, 1)."""

    @abstractmethod
    def levels(self, t: torch.Tensor) -> Levels:
        """The noise levels of times (B,)."""

    @abstractmethod
    def targets(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """What networks of this kind may predict, by name; one of them is this one's."""

    def loss(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        t: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean penalty per sample (B,), in float32; `mask` (B, 1, H, W) weighs positions, 0 ignores them."""
        settings = self.settings
        error = loss_weighting.apply_mask(prediction.float() - target.float(), mask)
        if settings.huber is None:
            penalty = error.square()
        else:
            penalty = loss_weighting.pseudo_huber(
                error, loss_weighting.huber_c(settings.huber, *self.levels(t))
            )
        normalise = settings.mask is None or settings.mask.normalise
        value = loss_weighting.masked_mean(penalty, mask, normalise=normalise)
        if self.weight is None:
            return value
        _, signal, spread = self.levels(t)
        return value * self.weight(signal, spread).to(value.dtype)


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Rectified flow: x_s = (1 - s) x + s n, target n - x, time 1000 s."""

    shift: float | timesteps.ResolutionShift

    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """`latents`, `noise` (B, C, ..., H, W); `u` (B,) uniform in [0, 1)."""
        u = self.spread(u).to(latents.dtype)
        shift = self.shift(latents.shape) if isinstance(self.shift, timesteps.ResolutionShift) else self.shift
        sigma = shift * u / (1 + (shift - 1) * u)
        s = sigma.view(-1, *[1] * (latents.ndim - 1))
        return (1 - s) * latents + s * noise, sigma * 1000, noise - latents

    def levels(self, t: torch.Tensor) -> Levels:
        """The noise levels of times (B,)."""
        sigma = t.double() / 1000
        return sigma, 1 - sigma, sigma

    def targets(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """What networks of this kind may predict, by name."""
        return {
            "flow": noise - latents,
            "flow, reversed": latents - noise,
            "epsilon": noise,
            "sample": latents,
        }


@dataclass(frozen=True)
class DDPM(Objective):
    """DDPM: x_t = sqrt(a_t) x + sqrt(1 - a_t) n with the base's own a_t, target noise, v or the sample."""

    alphas_cumprod: torch.Tensor  # (T,)

    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """`latents`, `noise` (B, C, ..., H, W); `u` (B,) uniform in [0, 1)."""
        count = len(self.alphas_cumprod)
        t = (self.spread(u) * count).long().clamp(max=count - 1)
        signal, spread = self._parts(latents, t)
        return signal * latents + spread * noise, t, self.targets(latents, noise, t)[self.prediction]

    def _parts(self, latents: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha_bar = self.alphas_cumprod.to(latents.device)[t].to(latents.dtype)
        alpha_bar = alpha_bar.view(-1, *[1] * (latents.ndim - 1))
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def levels(self, t: torch.Tensor) -> Levels:
        """The noise levels of times (B,)."""
        alpha_bar = self.alphas_cumprod.to(t.device)[t]
        return t.double() / len(self.alphas_cumprod), alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def targets(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """What networks of this kind may predict, by name."""
        signal, spread = self._parts(latents, t)
        return {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}


def objective_from_scheduler(
    kind: str, config: Mapping[str, Any], settings: Settings, alphas: Any = None, patch: int | None = None
) -> Objective:
    """The objective of a base: `kind` is the family's ("flow" or "ddpm"), `config` its scheduler's
    configuration.

    `alphas` are the scheduler's `alphas_cumprod` (T,), with its own beta schedule and zero-SNR rescaling
    applied; `patch` is the number of latents per side of a token, None where the shift by resolution is not
    the scheduler's. A setting that contradicts the base is a `ConfigError` that names both.
    """
    return _flow(config, settings, patch) if kind == "flow" else _diffusion(config, settings, alphas)


def _flow(config: Mapping[str, Any], settings: Settings, patch: int | None) -> FlowMatching:
    sigma = torch.linspace(loss_weighting.MIN_SIGMA, 1, 1000, dtype=torch.float64)
    weight = loss_weighting.build_loss_weight(settings, "flow", 1 - sigma, sigma)
    spread = timesteps.timestep_distribution(settings, "logit-normal")
    if settings.shift == "resolution":
        return FlowMatching(settings, spread, weight, "flow", timesteps.resolution_shift(config, patch))
    own = float(config.get("shift", config.get("flow_shift", 1.0)))
    base_shift = 1.0 if config.get("use_dynamic_shifting", False) else own
    return FlowMatching(settings, spread, weight, "flow", settings.shift or base_shift)


def _diffusion(config: Mapping[str, Any], settings: Settings, alphas: Any) -> DDPM:
    if settings.shift is not None:
        raise ConfigError(
            "objective.shift belongs to flow matching, but the base is a ddpm model", where="objective.shift"
        )
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ConfigError(f"the base's scheduler has an unknown prediction_type {prediction!r}")
    alpha_bar = torch.as_tensor(alphas, dtype=torch.float64)
    weight = loss_weighting.build_loss_weight(settings, prediction, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return DDPM(settings, timesteps.timestep_distribution(settings, "uniform"), weight, prediction, alpha_bar)
