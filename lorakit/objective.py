"""The training objectives: flow matching and ddpm, read from the base's scheduler, never from a flag.

`noise` maps clean latents, noise and one uniform number a sample to (noisy latents, time, target); `loss`
compares the model's prediction with the target. Both are pure. Time is in scheduler units: ddpm 0..T-1
(integers), flow 0..1000.

Sources: DDPM, arXiv:2006.11239; v-prediction, arXiv:2202.00512; zero-terminal SNR, arXiv:2305.08891;
rectified flow and logit-normal times, arXiv:2403.03206.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.errors import ConfigError
from lorakit.recipe import Objective as Settings

Noised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Flow:
    """Rectified flow: x_s = (1 - s) x + s n, target n - x, time 1000 s."""

    timesteps: str = "logit-normal"
    shift: float = 1.0

    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """`latents`, `noise` (B, C, H, W); `u` (B,) uniform in [0, 1)."""
        u = _spread(u, self.timesteps).to(latents.dtype)
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        s = sigma.view(-1, *[1] * (latents.ndim - 1))
        return (1 - s) * latents + s * noise, sigma * 1000, noise - latents

    def loss(self, prediction: torch.Tensor, target: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error per sample (B,), in float32."""
        return _squared_error(prediction, target)


@dataclass(frozen=True)
class Diffusion:
    """DDPM: x_t = sqrt(a_t) x + sqrt(1 - a_t) n with the base's own a_t, target noise, v or the sample."""

    prediction: str
    alphas_cumprod: torch.Tensor  # (T,)
    timesteps: str = "uniform"

    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """`latents`, `noise` (B, C, H, W); `u` (B,) uniform in [0, 1)."""
        count = len(self.alphas_cumprod)
        t = (_spread(u, self.timesteps) * count).long().clamp(max=count - 1)
        alpha_bar = self.alphas_cumprod.to(latents.device)[t].to(latents.dtype)
        alpha_bar = alpha_bar.view(-1, *[1] * (latents.ndim - 1))
        signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        targets = {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}
        return signal * latents + spread * noise, t, targets[self.prediction]

    def loss(self, prediction: torch.Tensor, target: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error per sample (B,), in float32."""
        return _squared_error(prediction, target)


Objective = Flow | Diffusion


def _spread(u: torch.Tensor, timesteps: str) -> torch.Tensor:
    """Uniform numbers as shares of the time axis, float64: as they are, or gathered in the middle."""
    u = u.double()
    if timesteps == "logit-normal":
        return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)).sigmoid()
    return u


def _squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def from_scheduler(kind: str, config: Mapping[str, Any], settings: Settings, alphas: Any = None) -> Objective:
    """The objective of a base: `kind` is the family's ("flow" or "ddpm"), `config` its scheduler's
    configuration.

    `alphas` are the scheduler's `alphas_cumprod` (T,), with its own beta schedule and zero-SNR rescaling
    applied.
    """
    if kind == "flow":
        dynamic = config.get("use_dynamic_shifting", False)
        base_shift = 1.0 if dynamic else float(config.get("shift", config.get("flow_shift", 1.0)))
        timesteps = "logit-normal" if settings.timesteps == "auto" else settings.timesteps
        return Flow(timesteps, settings.shift or base_shift)
    if settings.shift is not None:
        raise ConfigError(
            "objective.shift belongs to flow matching, but the base is a ddpm model", where="objective.shift"
        )
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ConfigError(f"the base's scheduler has an unknown prediction_type {prediction!r}")
    timesteps = "uniform" if settings.timesteps == "auto" else settings.timesteps
    return Diffusion(prediction, torch.as_tensor(alphas, dtype=torch.float64), timesteps)
