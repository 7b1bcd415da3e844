"""The training objectives: flow matching and ddpm, read from the base model's scheduler, never from a flag.

`add_noise` maps clean latents, noise and one uniform number a sample to noisy latents, timesteps and target:
`sample_levels` computes the few numbers of each sample on the host, `mix` the rest on the device. `loss`
compares the model's prediction with the target. All are pure. Timesteps are in scheduler units: ddpm
0..T-1 (integers), flow 0..1000.

Sources: DDPM, arXiv:2006.11239; v-prediction, arXiv:2202.00512; zero-terminal SNR, arXiv:2305.08891;
rectified flow and logit-normal timesteps, arXiv:2403.03206. Their distribution is in `timesteps`, the weights
in `loss_weighting`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorakit.config.objective import ObjectiveConfig
from lorakit.core.errors import ConfigError
from lorakit.training import loss_weighting, timesteps
from lorakit.training.loss_weighting import NoiseLevels


@dataclass(frozen=True)
class NoisedLatents:
    """Noisy latents (B, C, ..., H, W), timesteps (B,) in scheduler units, target (B, C, ..., H, W)."""

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class SampledLevels:
    """Timesteps (B,) in scheduler units, with alpha and sigma (B,) of x_t = alpha x + sigma n in float32."""

    timesteps: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor

    def move(self, move: Callable[[torch.Tensor], torch.Tensor]) -> SampledLevels:
        """Return the levels with all tensors moved by a function."""
        return SampledLevels(move(self.timesteps), move(self.alpha), move(self.sigma))

    def factors(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha and sigma, each (B, 1, ..., 1), for latents (B, C, ..., H, W)."""
        shape = (-1, *[1] * (latents.ndim - 1))
        return self.alpha.view(shape), self.sigma.view(shape)


@dataclass(frozen=True)
class Objective(ABC):
    """A base model's training objective with the recipe's changes."""

    config: ObjectiveConfig
    timestep_distribution: timesteps.TimestepDistribution
    loss_weight: loss_weighting.LossWeight | None
    prediction_type: str
    """The name in `targets` of what the network predicts."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> NoisedLatents:
        """Mix `latents` and `noise` (B, C, ..., H, W) at timesteps given by `u` (B,) in [0, 1)."""
        levels = self.sample_levels(u, latents.shape)
        return self.mix(latents, noise, levels.move(lambda tensor: tensor.to(latents.device)))

    @abstractmethod
    def sample_levels(self, u: torch.Tensor, latent_shape: Sequence[int]) -> SampledLevels:
        """The timesteps and noise levels given by `u` (B,) in [0, 1), for latents (B, C, ..., H, W).

        To be called with numbers of the host: some devices have no float64.
        """

    @abstractmethod
    def mix(self, latents: torch.Tensor, noise: torch.Tensor, levels: SampledLevels) -> NoisedLatents:
        """Mix `latents` and `noise` (B, C, ..., H, W) at noise levels."""

    @abstractmethod
    def noise_levels(self, t: torch.Tensor) -> NoiseLevels:
        """The noise levels of timesteps (B,)."""

    @abstractmethod
    def targets(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Everything that networks of this kind may predict, by name; `prediction_type` is one of them."""

    def loss(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        t: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean penalty per sample (B,), in float32; `mask` (B, 1, H, W) weighs positions, 0 ignores them."""
        config = self.config
        error = loss_weighting.apply_mask(prediction.float() - target.float(), mask)
        if config.huber is None:
            penalty = error.square()
        else:
            c = loss_weighting.huber_c(config.huber, self.noise_levels(t))
            penalty = loss_weighting.pseudo_huber(error, c)
        normalize_area = config.masked_loss is None or config.masked_loss.normalize_area
        value = loss_weighting.masked_mean(penalty, mask, normalize_area=normalize_area)
        if self.loss_weight is None:
            return value
        return value * self.loss_weight(self.noise_levels(t)).to(value.dtype)


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Rectified flow: x_s = (1 - s) x + s n, target n - x, timestep 1000 s."""

    shift: float | timesteps.ResolutionShift

    def sample_levels(self, u: torch.Tensor, latent_shape: Sequence[int]) -> SampledLevels:
        """The timesteps and noise levels given by `u` (B,) in [0, 1), for latents (B, C, ..., H, W)."""
        u = self.timestep_distribution(u).float()
        shift = self.shift(latent_shape) if isinstance(self.shift, timesteps.ResolutionShift) else self.shift
        sigma = shift * u / (1 + (shift - 1) * u)
        return SampledLevels(sigma * 1000, 1 - sigma, sigma)

    def mix(self, latents: torch.Tensor, noise: torch.Tensor, levels: SampledLevels) -> NoisedLatents:
        """Mix `latents` and `noise` (B, C, ..., H, W) at noise levels."""
        alpha, sigma = levels.factors(latents)
        return NoisedLatents(alpha * latents + sigma * noise, levels.timesteps, noise - latents)

    def noise_levels(self, t: torch.Tensor) -> NoiseLevels:
        """The noise levels of timesteps (B,)."""
        sigma = t.to(_precise_dtype(t.device)) / 1000
        return NoiseLevels(fraction=sigma, alpha=1 - sigma, sigma=sigma)

    def targets(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Everything that networks of this kind may predict, by name."""
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
    _on_device: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def sample_levels(self, u: torch.Tensor, latent_shape: Sequence[int]) -> SampledLevels:
        """The timesteps and noise levels given by `u` (B,) in [0, 1), for latents (B, C, ..., H, W)."""
        count = len(self.alphas_cumprod)
        t = (self.timestep_distribution(u) * count).long().clamp(max=count - 1)
        return self._levels(t)

    def mix(self, latents: torch.Tensor, noise: torch.Tensor, levels: SampledLevels) -> NoisedLatents:
        """Mix `latents` and `noise` (B, C, ..., H, W) at noise levels."""
        alpha, sigma = levels.factors(latents)
        target = _ddpm_targets(latents, noise, alpha, sigma)[self.prediction_type]()
        return NoisedLatents(alpha * latents + sigma * noise, levels.timesteps, target)

    def _levels(self, t: torch.Tensor) -> SampledLevels:
        alpha_bar = self._alphas(t.device)[t].float()
        return SampledLevels(t, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    def _alphas(self, device: torch.device) -> torch.Tensor:
        """The `alphas_cumprod` on a device, copied there once."""
        if device not in self._on_device:
            alphas = self.alphas_cumprod.to(_precise_dtype(device))
            self._on_device[device] = alphas.to(device)
        return self._on_device[device]

    def noise_levels(self, t: torch.Tensor) -> NoiseLevels:
        """The noise levels of timesteps (B,)."""
        alpha_bar = self._alphas(t.device)[t]
        fraction = t.to(alpha_bar.dtype) / len(self.alphas_cumprod)
        return NoiseLevels(fraction, alpha=alpha_bar.sqrt(), sigma=(1 - alpha_bar).sqrt())

    def targets(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Everything that networks of this kind may predict, by name."""
        alpha, sigma = self._levels(t).factors(latents)
        return {name: target() for name, target in _ddpm_targets(latents, noise, alpha, sigma).items()}


def _ddpm_targets(
    latents: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    return {
        "epsilon": lambda: noise,
        "v_prediction": lambda: alpha * noise - sigma * latents,
        "sample": lambda: latents,
    }


def _precise_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point data type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def objective_from_scheduler(
    objective: str,
    scheduler_config: Mapping[str, Any],
    config: ObjectiveConfig,
    alphas_cumprod: Any = None,
    patch_size: int | None = None,
) -> Objective:
    """The objective of a base model: `objective` is the family's ("flow" or "ddpm").

    `alphas_cumprod` (T,) are the scheduler's, with its own beta schedule and zero-SNR rescaling applied;
    `patch_size` is the number of latents per side of a token, None where the shift by resolution is not the
    scheduler's. A setting that contradicts the base is a `ConfigError` that names both.
    """
    if objective == "flow":
        return _flow_matching(scheduler_config, config, patch_size)
    return _ddpm(scheduler_config, config, alphas_cumprod)


def _flow_matching(
    scheduler_config: Mapping[str, Any], config: ObjectiveConfig, patch_size: int | None
) -> FlowMatching:
    sigma = torch.linspace(loss_weighting.MIN_SIGMA, 1, 1000, dtype=torch.float64)
    levels = NoiseLevels(fraction=sigma, alpha=1 - sigma, sigma=sigma)
    weight = loss_weighting.build_loss_weight(config, "flow", levels)
    distribution = timesteps.timestep_distribution(config, "logit_normal")
    shift: float | timesteps.ResolutionShift
    if config.shift == "resolution":
        shift = timesteps.resolution_shift(scheduler_config, patch_size)
    else:
        static = float(scheduler_config.get("shift", scheduler_config.get("flow_shift", 1.0)))
        base_shift = 1.0 if scheduler_config.get("use_dynamic_shifting", False) else static
        shift = config.shift or base_shift
    return FlowMatching(config, distribution, weight, "flow", shift)


def _ddpm(scheduler_config: Mapping[str, Any], config: ObjectiveConfig, alphas_cumprod: Any) -> DDPM:
    if config.shift is not None:
        raise ConfigError(
            "objective.shift is for flow matching, but the base is a ddpm model",
            where="objective.shift",
            remedy="leave it out",
        )
    prediction_type = str(scheduler_config.get("prediction_type", "epsilon"))
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ConfigError(
            f"the base's scheduler has an unknown prediction_type {prediction_type!r}",
            where="base: scheduler/scheduler_config.json",
            remedy="use epsilon, v_prediction or sample",
        )
    alpha_bar = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    fraction = torch.arange(len(alpha_bar), dtype=torch.float64) / len(alpha_bar)
    levels = NoiseLevels(fraction, alpha=alpha_bar.sqrt(), sigma=(1 - alpha_bar).sqrt())
    weight = loss_weighting.build_loss_weight(config, prediction_type, levels)
    distribution = timesteps.timestep_distribution(config, "uniform")
    return DDPM(config, distribution, weight, prediction_type, alpha_bar)
