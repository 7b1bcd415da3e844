"""Timesteps: a uniform number in [0, 1) for each image, and its distribution over the time axis.

Sources: logit-normal and mode sampling, arXiv:2403.03206 (section 3.1); the shift by resolution as the
pipelines of diffusers compute it from their scheduler's configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from lorakit.config.objective import DEFAULT_MODE_SCALE, ObjectiveConfig
from lorakit.core import rng
from lorakit.core.errors import ConfigError

TimestepDistribution = Callable[[torch.Tensor], torch.Tensor]
"""Uniform numbers (B,) to fractions of the time axis (B,) in float64, monotonically increasing."""


def sample_uniforms(
    positions: Sequence[int], seed: int, purpose: str, batch: int, *, stratified: bool
) -> list[float]:
    """A number in [0, 1) for each position in the stream of images, of which a step takes `batch`.

    With `stratified`, each image of a step has one of `batch` equal parts of [0, 1), in a keyed order.
    """
    uniforms = [rng.keyed_uniform(seed, purpose, position) for position in positions]
    if not stratified:
        return uniforms
    placed = []
    for position, uniform in zip(positions, uniforms, strict=True):
        step, index = divmod(position, batch)
        placed.append((_strata(batch, seed, purpose, step)[index] + uniform) / batch)
    return placed


@lru_cache(maxsize=4)
def _strata(batch: int, seed: int, purpose: str, step: int) -> tuple[int, ...]:
    return tuple(rng.epoch_permutation(batch, rng.derive_seed(seed, f"{purpose} strata"), step))


def timestep_distribution(config: ObjectiveConfig, default: str) -> TimestepDistribution:
    """The distribution that a recipe asks for; `default` is the base's own, used for `auto`."""
    name = default if config.timesteps == "auto" else config.timesteps
    if name == "logit_normal":
        return LogitNormalDistribution(config.logit_mean or 0.0, config.logit_std or 1.0)
    for key in ("logit_mean", "logit_std"):
        if getattr(config, key) is not None:
            raise ConfigError(
                f"objective.{key} is for logit_normal timesteps, but the base's own are {name}",
                where=f"objective.{key}",
                remedy="set objective.timesteps: logit_normal as well",
            )
    if name == "mode":
        return ModeDistribution(DEFAULT_MODE_SCALE if config.mode_scale is None else config.mode_scale)
    return uniform_distribution


def uniform_distribution(u: torch.Tensor) -> torch.Tensor:
    """All timesteps equally often."""
    return u.double()


@dataclass(frozen=True)
class LogitNormalDistribution:
    """Most timesteps around the sigmoid of `mean`."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        normal = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))
        return (self.mean + self.std * normal).sigmoid()


@dataclass(frozen=True)
class ModeDistribution:
    """Most timesteps in the middle, but none excluded: the paper's function of 1 - u, which increases."""

    scale: float

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        u = u.double()
        return u + self.scale * (u - torch.sin(math.pi / 2 * u) ** 2)


@dataclass(frozen=True)
class ResolutionShift:
    """A shift of the noise level that grows with an image's number of tokens, linear between two of them."""

    base_shift: float
    max_shift: float
    base_seq_len: int
    max_seq_len: int
    exponential: bool
    patch_size: int
    """Latents per side of one token."""

    def __call__(self, latent_shape: Sequence[int]) -> float:
        """The shift for latents of the shape (B, C, ..., H, W)."""
        tokens = math.prod(latent_shape[2:]) / self.patch_size**2
        slope = (self.max_shift - self.base_shift) / (self.max_seq_len - self.base_seq_len)
        mu = self.base_shift + slope * (tokens - self.base_seq_len)
        return math.exp(mu) if self.exponential else mu


def resolution_shift(scheduler_config: Mapping[str, Any], patch_size: int | None) -> ResolutionShift:
    """The shift by resolution that a scheduler's configuration states; without one it is a `ConfigError`.

    `patch_size` is None for a family whose pipeline has another rule.
    """
    if patch_size is None:
        raise ConfigError(
            "objective.shift: resolution follows the scheduler's configuration, but the base's pipeline has"
            " another rule",
            where="objective.shift",
            remedy="give a number, or leave it out",
        )
    keys = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
    values = [scheduler_config.get(key) for key in keys]
    if not scheduler_config.get("use_dynamic_shifting", False) or None in values:
        raise ConfigError(
            "objective.shift: resolution, but the base's scheduler has no shift by resolution: its shift is"
            f" {scheduler_config.get('shift', 1.0)} at every resolution",
            where="objective.shift",
            remedy="give a number, or leave it out for the base's own",
        )
    base_shift, max_shift, base_seq_len, max_seq_len = (scheduler_config[key] for key in keys)
    if base_seq_len == max_seq_len:
        raise ConfigError(
            "the base's scheduler states its shift at one resolution only",
            where="objective.shift",
            remedy="give a number, or leave it out for the base's own",
        )
    exponential = scheduler_config.get("time_shift_type", "exponential") == "exponential"
    return ResolutionShift(
        float(base_shift), float(max_shift), int(base_seq_len), int(max_seq_len), exponential, patch_size
    )
