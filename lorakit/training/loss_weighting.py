"""How errors become a loss: the weight of a noise level, the pseudo-Huber penalty, the mask.

Weights are stated for the loss that the base was trained with (noise, v, sample, or noise - clean), and
derived by what an error of it means for the clean picture. All are finite at every noise level, also without
any signal left (zero terminal SNR).

Sources: min-SNR, arXiv:2303.09556; debiased, arXiv:2310.08442; sigma-sqrt and cosmap, arXiv:2403.03206 and
its reference code; scheduled pseudo-Huber, arXiv:2403.16728.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lorakit.config.objective import DEFAULT_GAMMA, HuberConfig, ObjectiveConfig
from lorakit.core.errors import ConfigError

LossWeight = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(signal, spread) of a noise level, x_t = signal x + spread n, to its weight; all (B,) in float64."""

MIN_SIGMA = 1e-3  # sigma of the first of 1000 steps: weights that grow without bound stop there


def build_loss_weight(
    settings: ObjectiveConfig, prediction: str, signal: torch.Tensor, spread: torch.Tensor
) -> LossWeight | None:
    """The weight that a recipe asks for, None for none.

    `prediction` is "epsilon", "v_prediction", "sample" or "flow"; `signal` and `spread` (N,) are those of the
    base's noise levels, by which settings that cannot work on it are refused.
    """
    name = settings.weighting
    if name == "none":
        return None
    if name in ("sigma-sqrt", "cosmap"):
        _require_flow(name, prediction)
        return _sigma_sqrt if name == "sigma-sqrt" else _cosmap
    if name == "debiased":
        if prediction == "epsilon" and not signal.min() > 0:
            raise ConfigError(
                "objective.weighting: debiased has no finite weight on this base: its scheduler leaves no"
                " signal at the last step (zero terminal SNR), and it predicts noise",
                where="objective.weighting",
                remedy="use min-snr or none",
            )
        return _debiased(prediction)
    gamma = DEFAULT_GAMMA if settings.gamma is None else settings.gamma
    _check_gamma(gamma, signal, spread)
    return _min_snr(prediction, gamma)


def _require_flow(name: str, prediction: str) -> None:
    if prediction != "flow":
        raise ConfigError(
            f"objective.weighting: {name} belongs to flow matching, but the base is a ddpm model"
            f" ({prediction})",
            where="objective.weighting",
            remedy="use min-snr, debiased or none",
        )


def _check_gamma(gamma: float, signal: torch.Tensor, spread: torch.Tensor) -> None:
    ratios = (signal.double() / spread.double().clamp(min=1e-12)) ** 2
    low, high = ratios.min().item(), ratios.max().item()
    if not low < gamma < high:
        raise ConfigError(
            f"objective.gamma {gamma:g} changes no weight on this base, whose signal-to-noise ratio goes from"
            f" {low:.3g} to {high:.3g}",
            where="objective.gamma",
            remedy=f"choose one between; the paper's is {DEFAULT_GAMMA:g}",
        )


def _min_snr(prediction: str, gamma: float) -> LossWeight:
    """min(SNR, gamma) as the weight of the clean picture's error."""

    def of(signal: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        power, noise = signal**2, spread**2
        if prediction == "epsilon":  # min(SNR, gamma) / SNR
            return (gamma * noise / power.clamp(min=1e-30)).clamp(max=1.0)
        if prediction == "sample":
            return (power / noise.clamp(min=1e-30)).clamp(max=gamma)
        # v: min(SNR, gamma) / (SNR + 1); flow: the clean picture is x_t - sigma (n - x), so times sigma^2
        return torch.minimum(power, gamma * noise)

    return of


def _debiased(prediction: str) -> LossWeight:
    """1 / sqrt(SNR) as the weight of the noise's error, so sqrt(SNR) of the clean picture's."""

    def of(signal: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        if prediction == "epsilon":
            return spread / signal
        if prediction == "sample":
            return signal / spread.clamp(min=MIN_SIGMA)
        return signal * spread  # v: sqrt(SNR) / (SNR + 1); flow: sigma^2 sqrt(SNR)

    return of


def _sigma_sqrt(signal: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return spread.clamp(min=MIN_SIGMA) ** -2


def _cosmap(signal: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return 2 / (math.pi * (1 - 2 * spread + 2 * spread**2))


def huber_c(
    settings: HuberConfig, share: torch.Tensor, signal: torch.Tensor, spread: torch.Tensor
) -> torch.Tensor:
    """c (B,) at a noise level; `share` (B,) is its place on the time axis, 0 clean to 1."""
    if settings.schedule == "exponential":
        return settings.c**share
    if settings.schedule == "snr":  # (1 + sqrt(1 / SNR))^-2 of the way from c to 1
        return settings.c + (1 - settings.c) * (signal / (signal + spread)) ** 2
    return torch.full_like(share, settings.c)


def pseudo_huber(error: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """2 c (sqrt(e^2 + c^2) - c) of each error (B, ...): e^2 for small ones, 2 c |e| for large; `c` (B,)."""
    c = c.to(error.dtype).view(-1, *[1] * (error.ndim - 1))
    # the same without the difference of two nearly equal numbers
    return 2 * c * error.square() / ((error.square() + c.square()).sqrt() + c)


def apply_mask(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Errors (B, C, ..., H, W) with exact zeros where `mask` (B, 1, H, W) is 0: nothing there, not even NaN,
    reaches loss or gradient."""
    return error if mask is None else torch.where(_expand_mask(mask, error) > 0, error, 0.0)


def masked_mean(penalty: torch.Tensor, mask: torch.Tensor | None, *, normalise: bool) -> torch.Tensor:
    """Mean of (B, C, ..., H, W) per sample (B,), weighted by `mask` (B, 1, H, W); with `normalise` over the
    mask's area, else over the whole picture's. An empty mask gives 0."""
    if mask is None:
        return penalty.flatten(1).mean(1)
    weights = _expand_mask(mask, penalty).expand_as(penalty).flatten(1)
    total = (penalty.flatten(1) * weights).sum(1)
    return total / (weights.sum(1).clamp(min=1e-12) if normalise else weights.shape[1])


def _expand_mask(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) with as many dimensions as the values."""
    return mask.view(len(mask), 1, *[1] * (values.ndim - 4), *mask.shape[2:])
