"""Pixels <-> normalised latents: one rule per autoencoder class.

The denoiser sees latents of about unit variance. How they get there belongs to the autoencoder (a scale and a
shift, or running batch statistics over 2 x 2 patches), so it is stated once here and proven against each
pipeline's own decoding and image encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """How one autoencoder class's raw latents (B, C, H, W) become the denoiser's, and back."""

    patch: int
    """Raw positions per side that are folded into channels."""
    statistics: Callable[[Any], tuple[torch.Tensor | float, torch.Tensor | float]]
    """(offset, scale): a normalised latent is (raw - offset) / scale."""


def _shift_and_scale(vae: Any) -> tuple[float, float]:
    return float(vae.config.get("shift_factor") or 0.0), 1.0 / float(vae.config["scaling_factor"])


def _batch_norm(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
    deviation = torch.sqrt(variance + vae.config["batch_norm_eps"])
    return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)


RULES = {"AutoencoderKL": Rule(1, _shift_and_scale), "AutoencoderKLFlux2": Rule(2, _batch_norm)}


def _rule(class_name: str) -> Rule:
    try:
        return RULES[class_name]
    except KeyError:
        raise ConfigError(
            f"no rule for the autoencoder {class_name}", remedy=f"known: {', '.join(RULES)}"
        ) from None


def encode(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior (mean, std) in normalised latents, float32: `mean + std * noise` is a sample.

    `pixels` (B, 3, H, W) in [-1, 1], on the autoencoder's device.
    """
    rule = _rule(type(vae).__name__)
    with torch.no_grad():
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        offset, scale = rule.statistics(vae)
        return (_fold(mean, rule.patch) - offset) / scale, _fold(std, rule.patch) / scale


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W), about [-1, 1], float32, from normalised latents."""
    rule = _rule(type(vae).__name__)
    with torch.no_grad():
        offset, scale = rule.statistics(vae)
        raw = _unfold(latents.float() * scale + offset, rule.patch)
        pixels: torch.Tensor = vae.decode(raw.to(vae.dtype), return_dict=False)[0]
        return pixels.float()


def latent_shape(class_name: str, config: Mapping[str, Any], width: int, height: int) -> tuple[int, int, int]:
    """(C, H, W) of the normalised latents of a picture of width x height pixels."""
    patch = _rule(class_name).patch
    step = 2 ** (len(config["block_out_channels"]) - 1) * patch
    if width % step or height % step:
        raise ConfigError(
            f"{width} x {height} pixels do not divide into latents", remedy=f"use multiples of {step}"
        )
    return int(config["latent_channels"]) * patch**2, height // step, width // step


def _fold(raw: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, C, H*p, W*p) -> (B, C*p*p, H, W), ordered by channel, row in patch, column in patch."""
    return torch.nn.functional.pixel_unshuffle(raw, patch) if patch > 1 else raw


def _unfold(latents: torch.Tensor, patch: int) -> torch.Tensor:
    return torch.nn.functional.pixel_shuffle(latents, patch) if patch > 1 else latents
