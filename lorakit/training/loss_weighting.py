"""From errors to a loss: the weight of a noise level, the pseudo-Huber penalty, the mask.

Weights are stated for the loss that the base was trained with (noise, v, sample, or noise - clean), and
derived from what its error means for the clean image. All are finite at every noise level, also without any
signal left (zero terminal SNR).

Sources: min-SNR, arXiv:2303.09556; debiased, arXiv:2310.08442; sigma-sqrt and cosmap, arXiv:2403.03206 and
its reference code; scheduled pseudo-Huber, arXiv:2403.16728.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lorakit.config.objective import DEFAULT_GAMMA, HuberConfig, ObjectiveConfig
from lorakit.core.errors import ConfigError


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels of x_t = alpha x + sigma n; each (B,) in float64."""

    fraction: torch.Tensor
    """Position on the time axis: 0 is clean, 1 is noise."""
    alpha: torch.Tensor
    sigma: torch.Tensor


LossWeight = Callable[[NoiseLevels], torch.Tensor]
"""The weights (B,) of noise levels."""

MIN_SIGMA = 1e-3  # sigma of the first of 1000 steps: weights that grow without bound stop there


def build_loss_weight(
    config: ObjectiveConfig, prediction_type: str, levels: NoiseLevels
) -> LossWeight | None:
    """The weight that a recipe asks for, None for none.

    `prediction_type` is "epsilon", "v_prediction", "sample" or "flow"; `levels` are the base's noise levels.
    A setting that has no effect on them, or no finite one, is a `ConfigError`.
    """
    name = config.weighting
    if name == "none":
        return None
    if name in ("sigma_sqrt", "cosmap"):
        _require_flow(name, prediction_type)
        return _sigma_sqrt if name == "sigma_sqrt" else _cosmap
    if name == "debiased":
        if prediction_type == "epsilon" and not levels.alpha.min() > 0:
            raise ConfigError(
                "objective.weighting: debiased has no finite weight on this base: its scheduler leaves no"
                " signal at the last step (zero terminal SNR), and it predicts noise",
                where="objective.weighting",
                remedy="use min_snr or none",
            )
        return _debiased(prediction_type)
    gamma = DEFAULT_GAMMA if config.min_snr_gamma is None else config.min_snr_gamma
    _check_gamma(gamma, levels)
    return _min_snr(prediction_type, gamma)


def _require_flow(name: str, prediction_type: str) -> None:
    if prediction_type != "flow":
        raise ConfigError(
            f"objective.weighting: {name} is for flow matching, but the base is a ddpm model"
            f" ({prediction_type})",
            where="objective.weighting",
            remedy="use min_snr, debiased or none",
        )


def _check_gamma(gamma: float, levels: NoiseLevels) -> None:
    snr = (levels.alpha.double() / levels.sigma.double().clamp(min=1e-12)) ** 2
    low, high = snr.min().item(), snr.max().item()
    if not low < gamma < high:
        raise ConfigError(
            f"objective.min_snr_gamma {gamma:g} changes no weight on this base, whose signal-to-noise ratio"
            f" is between {low:.3g} and {high:.3g}",
            where="objective.min_snr_gamma",
            remedy=f"choose a number between; the paper's is {DEFAULT_GAMMA:g}",
        )


def _min_snr(prediction_type: str, gamma: float) -> LossWeight:
    """min(SNR, gamma) as the weight of the clean image's error."""

    def weight(levels: NoiseLevels) -> torch.Tensor:
        signal_power, noise_power = levels.alpha**2, levels.sigma**2
        if prediction_type == "epsilon":  # min(SNR, gamma) / SNR
            return (gamma * noise_power / signal_power.clamp(min=1e-30)).clamp(max=1.0)
        if prediction_type == "sample":
            return (signal_power / noise_power.clamp(min=1e-30)).clamp(max=gamma)
        # v: min(SNR, gamma) / (SNR + 1); flow: the clean image is x_t - sigma (n - x), so times sigma^2
        return torch.minimum(signal_power, gamma * noise_power)

    return weight


def _debiased(prediction_type: str) -> LossWeight:
    """1 / sqrt(SNR) as the weight of the noise's error, so sqrt(SNR) of the clean image's."""

    def weight(levels: NoiseLevels) -> torch.Tensor:
        if prediction_type == "epsilon":
            return levels.sigma / levels.alpha
        if prediction_type == "sample":
            return levels.alpha / levels.sigma.clamp(min=MIN_SIGMA)
        return levels.alpha * levels.sigma  # v: sqrt(SNR) / (SNR + 1); flow: sigma^2 sqrt(SNR)

    return weight


def _sigma_sqrt(levels: NoiseLevels) -> torch.Tensor:
    return levels.sigma.clamp(min=MIN_SIGMA) ** -2


def _cosmap(levels: NoiseLevels) -> torch.Tensor:
    return 2 / (math.pi * (1 - 2 * levels.sigma + 2 * levels.sigma**2))


def huber_c(config: HuberConfig, levels: NoiseLevels) -> torch.Tensor:
    """The c (B,) of the pseudo-Huber penalty at noise levels."""
    if config.schedule == "exponential":
        return config.c**levels.fraction
    if config.schedule == "snr":  # from c to 1 by (1 + sqrt(1 / SNR))^-2
        return config.c + (1 - config.c) * (levels.alpha / (levels.alpha + levels.sigma)) ** 2
    return torch.full_like(levels.fraction, config.c)


def pseudo_huber(error: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """2 c (sqrt(e^2 + c^2) - c) of each error (B, ...): e^2 for small ones, 2 c |e| for large; `c` (B,)."""
    c = c.to(error.dtype).view(-1, *[1] * (error.ndim - 1))
    # the same without the difference of two nearly equal numbers
    return 2 * c * error.square() / ((error.square() + c.square()).sqrt() + c)


def apply_mask(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Errors (B, C, ..., H, W) with exact zeros where `mask` (B, 1, H, W) is 0, so that nothing there, not
    even NaN, reaches loss or gradient."""
    return error if mask is None else torch.where(_expand_mask(mask, error) > 0, error, 0.0)


def masked_mean(penalty: torch.Tensor, mask: torch.Tensor | None, *, normalize_area: bool) -> torch.Tensor:
    """Mean of (B, C, ..., H, W) per sample (B,), weighted by `mask` (B, 1, H, W).

    With `normalize_area` the sum is divided by the mask's area, else by the whole image's. An empty mask
    gives 0.
    """
    if mask is None:
        return penalty.flatten(1).mean(1)
    weights = _expand_mask(mask, penalty).expand_as(penalty).flatten(1)
    total = (penalty.flatten(1) * weights).sum(1)
    return total / (weights.sum(1).clamp(min=1e-12) if normalize_area else weights.shape[1])


def _expand_mask(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`mask` (B, 1, H, W) with as many dimensions as `values`."""
    return mask.view(len(mask), 1, *[1] * (values.ndim - 4), *mask.shape[2:])
