"""Which noise levels are trained on: a number in [0, 1) a picture, and how it spreads over the time axis.

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


def sample_uniforms(
    positions: Sequence[int], seed: int, purpose: str, batch: int, *, stratified: bool
) -> list[float]:
    """A number in [0, 1) for each position in the stream of images, whose steps take `batch` at a time.

    With `stratified`, the images of a step have one each in `batch` equal parts of [0, 1), in a keyed order.
    """
    drawn = [rng.keyed_uniform(seed, purpose, position) for position in positions]
    if not stratified:
        return drawn
    placed = []
    for position, number in zip(positions, drawn, strict=True):
        step, index = divmod(position, batch)
        placed.append((_strata(batch, seed, purpose, step)[index] + number) / batch)
    return placed


@lru_cache(maxsize=4)
def _strata(batch: int, seed: int, purpose: str, step: int) -> tuple[int, ...]:
    return tuple(rng.epoch_permutation(batch, rng.derive_seed(seed, f"{purpose} strata"), step))


def timestep_distribution(settings: ObjectiveConfig, default: str) -> TimestepDistribution:
    """Uniform numbers (B,) to shares of the time axis (B,) in float64, growing with them; `default` is what
    `auto` stands for."""
    kind = default if settings.timesteps == "auto" else settings.timesteps
    if kind == "logit-normal":
        mean = settings.logit_mean or 0.0
        return LogitNormalDistribution(mean, settings.logit_std or 1.0)
    for key in ("logit_mean", "logit_std"):
        if getattr(settings, key) is not None:
            raise ConfigError(
                f"objective.{key} is for logit-normal times, but the base's own are {kind}",
                where=f"objective.{key}",
                remedy="set objective.timesteps: logit-normal as well",
            )
    if kind == "mode":
        return ModeDistribution(DEFAULT_MODE_SCALE if settings.mode_scale is None else settings.mode_scale)
    return uniform_distribution


def uniform_distribution(u: torch.Tensor) -> torch.Tensor:
    """As they are."""
    return u.double()


@dataclass(frozen=True)
class LogitNormalDistribution:
    """Gathered around the sigmoid of `mean`."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        normal = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))
        return (self.mean + self.std * normal).sigmoid()


@dataclass(frozen=True)
class ModeDistribution:
    """Gathered in the middle, with the ends kept; the paper's function of 1 - u, so that it grows."""

    scale: float

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        u = u.double()
        return u + self.scale * (u - torch.sin(math.pi / 2 * u) ** 2)


@dataclass(frozen=True)
class ResolutionShift:
    """A shift that grows with the number of a picture's tokens, between two numbers where it is stated."""

    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int
    exponential: bool
    patch: int
    """Latents per side of one token."""

    def __call__(self, latent_shape: Sequence[int]) -> float:
        """`latent_shape` is (B, C, ..., H, W)."""
        tokens = math.prod(latent_shape[2:]) / self.patch**2
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        return math.exp(mu) if self.exponential else mu


def resolution_shift(config: Mapping[str, Any], patch: int | None) -> ResolutionShift:
    """The rule that a scheduler's configuration states; a scheduler without one is a `ConfigError`.

    `patch` is None for a family whose pipeline has another rule.
    """
    where = "objective.shift"
    if patch is None:
        raise ConfigError(
            "objective.shift: resolution follows the scheduler's configuration, but the base's pipeline is"
            " not known to do so",
            where=where,
            remedy="give a number, or leave it out",
        )
    keys = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
    if not config.get("use_dynamic_shifting", False) or any(config.get(key) is None for key in keys):
        raise ConfigError(
            "objective.shift: resolution, but the base's scheduler has no shift by resolution: its shift is"
            f" {config.get('shift', 1.0)} at all",
            where=where,
            remedy="give a number, or leave it out for the base's own",
        )
    low, high, fewest, most = (config[key] for key in keys)
    if fewest == most:
        raise ConfigError("the base's scheduler states its shift at one resolution only", where=where)
    kind = config.get("time_shift_type", "exponential")
    return ResolutionShift(float(low), float(high), int(fewest), int(most), kind == "exponential", patch)
