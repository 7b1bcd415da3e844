"""Pixels <-> normalised latents: one rule per autoencoder class.

The denoiser sees latents of about unit variance. How they get there belongs to the autoencoder (a scale and a
shift, statistics of each channel, or running batch statistics over 2 x 2 patches), so it is stated once here
and proven against each pipeline's own decoding and image encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.errors import ConfigError

Statistics = tuple[torch.Tensor | float, torch.Tensor | float]


def _shift_and_scale(vae: Any) -> Statistics:
    scale = 1.0 / float(vae.config["scaling_factor"])
    if vae.config.get("latents_mean") is not None:  # some SDXL descendants
        mean, std = (_channels(vae, vae.config[name]) for name in ("latents_mean", "latents_std"))
        return mean, std * scale
    return float(vae.config.get("shift_factor") or 0.0), scale


def _mean_and_std(vae: Any) -> Statistics:
    return _channels(vae, vae.config["latents_mean"]), _channels(vae, vae.config["latents_std"])


def _batch_norm(vae: Any) -> Statistics:
    deviation = torch.sqrt(vae.bn.running_var.float() + vae.config["batch_norm_eps"])
    return _channels(vae, vae.bn.running_mean), _channels(vae, deviation)


def _channels(vae: Any, values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=vae.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Rule:
    """How one autoencoder class's raw latents (B, C, H, W) become the denoiser's, and back."""

    statistics: Callable[[Any], Statistics] = _shift_and_scale
    """(offset, scale): a normalised latent is (raw - offset) / scale."""
    levels: str = "block_out_channels"
    """The setting with one entry a resolution: each but the first halves the picture."""
    patch: int = 1
    """Raw positions per side that are folded into channels."""
    channels: str = "latent_channels"
    """The setting that counts the raw channels."""
    video: bool = False
    """Pictures are films of one frame: (B, C, 1, H, W)."""
    folded: str = ""
    """The setting for how many pixels per side are folded before the first level, if there is one."""
    alpha: bool = False
    """Pictures have a fourth channel, how opaque they are: ours are so everywhere."""


RULES = {
    "AutoencoderKL": Rule(),
    "AutoencoderKLFlux2": Rule(_batch_norm, patch=2),
    "AutoencoderDC": Rule(levels="encoder_block_out_channels"),
    "AutoencoderKLHunyuanImage": Rule(),
    "AutoencoderKLWan": Rule(_mean_and_std, "dim_mult", channels="z_dim", video=True, folded="patch_size"),
    "AutoencoderKLQwenImage": Rule(_mean_and_std, "dim_mult", channels="z_dim", video=True),
    "AutoencoderKLQwenImage21": Rule(_mean_and_std, "dim_mult", channels="z_dim", video=True, alpha=True),
}


def _rule(class_name: str) -> Rule:
    try:
        return RULES[class_name]
    except KeyError:
        raise ConfigError(
            f"no rule for the autoencoder {class_name}", remedy=f"known: {', '.join(RULES)}"
        ) from None


def encode(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior (mean, std) in normalised latents, float32: `mean + std * noise` is a sample.

    `pixels` (B, 3, H, W) in [-1, 1], on the autoencoder's device. An autoencoder without a posterior has a
    std of zero.
    """
    rule = _rule(type(vae).__name__)
    with torch.no_grad():
        pixels = pixels.to(vae.dtype)
        if rule.alpha:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        output = vae.encode(pixels[:, :, None] if rule.video else pixels)
        if hasattr(output, "latent_dist"):
            mean, std = output.latent_dist.mean.float(), output.latent_dist.std.float()
        else:
            mean, std = output.latent.float(), torch.zeros_like(output.latent, dtype=torch.float32)
        if rule.video:
            mean, std = mean[:, :, 0], std[:, :, 0]
        offset, scale = rule.statistics(vae)
        return (_fold(mean, rule.patch, vae) - offset) / scale, _fold(std, rule.patch, vae) / scale


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W), about [-1, 1], float32, from normalised latents."""
    rule = _rule(type(vae).__name__)
    with torch.no_grad():
        offset, scale = rule.statistics(vae)
        raw = _unfold(latents.float() * scale + offset, rule.patch, vae).to(vae.dtype)
        pixels: torch.Tensor = vae.decode(raw[:, :, None] if rule.video else raw, return_dict=False)[0]
        return (pixels[:, :, 0] if rule.video else pixels)[:, :3].float()


def step(class_name: str, config: Mapping[str, Any]) -> int:
    """Pixels per side that one normalised latent stands for."""
    rule = _rule(class_name)
    folded = config.get(rule.folded) or 1
    return int(2 ** (len(config[rule.levels]) - 1) * rule.patch * folded)


def latent_shape(class_name: str, config: Mapping[str, Any], width: int, height: int) -> tuple[int, int, int]:
    """(C, H, W) of the normalised latents of a picture of width x height pixels."""
    rule, pixels = _rule(class_name), step(class_name, config)
    if width % pixels or height % pixels:
        raise ConfigError(
            f"{width} x {height} pixels do not divide into latents", remedy=f"use multiples of {pixels}"
        )
    return int(config[rule.channels]) * rule.patch**2, height // pixels, width // pixels


def _fold(raw: torch.Tensor, patch: int, vae: Any) -> torch.Tensor:
    """(B, C, H*p, W*p) -> (B, C*p*p, H, W), ordered by channel, row in patch, column in patch.

    A family whose pipeline orders them by row, column, channel says `patch_channels_last`.
    """
    folded = torch.nn.functional.pixel_unshuffle(raw, patch)
    return _swap(folded, patch**2) if vae.config.get("patch_channels_last") else folded


def _unfold(latents: torch.Tensor, patch: int, vae: Any) -> torch.Tensor:
    if vae.config.get("patch_channels_last"):
        latents = _swap(latents, latents.shape[1] // patch**2)
    return torch.nn.functional.pixel_shuffle(latents, patch)


def _swap(latents: torch.Tensor, inner: int) -> torch.Tensor:
    """Channels ordered by (outer, inner) become ordered by (inner, outer)."""
    return latents.unflatten(1, (-1, inner)).transpose(1, 2).flatten(1, 2)
