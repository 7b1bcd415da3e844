"""Pixels <-> normalised latents: one rule per autoencoder class.

The denoiser sees latents of about unit variance. How they get there belongs to the autoencoder (a scale and a
shift, statistics of each channel, or running batch statistics over 2 x 2 patches), so it is stated once here
and proven against each pipeline's own decoding and image encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorakit.core.errors import ConfigError

Statistics = tuple[torch.Tensor | float, torch.Tensor | float]
CompressionFn = Callable[[Mapping[str, Any]], int]
"""From an autoencoder's configuration: how many pixels a side, or frames, one raw latent stands for."""


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


def _buffers(vae: Any) -> Statistics:
    scale = float(vae.config["scaling_factor"])
    return _channels(vae, vae.latents_mean), _channels(vae, vae.latents_std) / scale


def _scale_only(vae: Any) -> Statistics:
    return 0.0, 1.0 / float(vae.config["scaling_factor"])


def _channels(vae: Any, values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=vae.device).view(1, -1, 1, 1)


def _downsampling_levels(levels: str, folded: str = "") -> CompressionFn:
    """Twofold at each level but the first, after the fold; both are names of settings."""
    return lambda config: int(2 ** (len(config[levels]) - 1) * (config.get(folded) or 1))


_BLOCKS = _downsampling_levels("block_out_channels")


def _from_config(axis: str) -> CompressionFn:
    return lambda config: int(config[f"{axis}_compression_ratio"])


def _ltx(axis: str, patch: str) -> CompressionFn:
    """Where it is not stated, pixels or frames are folded and then halved at each level that scales."""
    return lambda config: int(
        config.get(f"{axis}_compression_ratio") or config[patch] * 2 ** sum(config["spatio_temporal_scaling"])
    )


def _wan_frames(config: Mapping[str, Any]) -> int:
    return int(2 ** sum(config["temperal_downsample"]))


@dataclass(frozen=True)
class VaeSpec:
    """How one autoencoder class's raw latents (B, C, H, W) become the denoiser's, and back."""

    statistics: Callable[[Any], Statistics] = _shift_and_scale
    """(offset, scale): a normalised latent is (raw - offset) / scale."""
    side: CompressionFn = _BLOCKS
    """Pixels per side of one raw latent."""
    patch: int = 1
    """Raw positions per side that are folded into channels."""
    channels: str = "latent_channels"
    """The setting that counts the raw channels."""
    frames: CompressionFn | None = None
    """For an autoencoder of films (B, C, F, H, W): frames of one latent, but for the first, which has its
    own."""
    alpha: bool = False
    """Pictures have a fourth channel, how opaque they are: ours are so everywhere."""


_WAN = VaeSpec(
    _mean_and_std, _downsampling_levels("dim_mult", "patch_size"), channels="z_dim", frames=_wan_frames
)
_QWEN = replace(_WAN, side=_downsampling_levels("dim_mult"))
_LTX = VaeSpec(_buffers, _ltx("spatial", "patch_size"), frames=_ltx("temporal", "patch_size_t"))
_HUNYUAN_VIDEO = VaeSpec(_scale_only, _from_config("spatial"), frames=_from_config("temporal"))
VAE_SPECS = {
    "AutoencoderKL": VaeSpec(),
    "AutoencoderKLFlux2": VaeSpec(_batch_norm, patch=2),
    "AutoencoderDC": VaeSpec(side=_downsampling_levels("encoder_block_out_channels")),
    "AutoencoderKLHunyuanImage": VaeSpec(),
    "AutoencoderKLWan": _WAN,
    "AutoencoderKLQwenImage": _QWEN,
    "AutoencoderKLQwenImage21": replace(_QWEN, alpha=True),
    "AutoencoderKLLTXVideo": _LTX,
    "AutoencoderKLLTX2Video": _LTX,
    "AutoencoderKLHunyuanVideo": _HUNYUAN_VIDEO,
    "AutoencoderKLHunyuanVideo15": _HUNYUAN_VIDEO,
    "AutoencoderKLCogVideoX": replace(_HUNYUAN_VIDEO, side=_BLOCKS),
}


def _rule(class_name: str) -> VaeSpec:
    try:
        return VAE_SPECS[class_name]
    except KeyError:
        raise ConfigError(
            f"no rule for the autoencoder {class_name}", remedy=f"known: {', '.join(VAE_SPECS)}"
        ) from None


def encode_latents(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior (mean, std) in normalised latents, float32: `mean + std * noise` is a sample.

    `pixels` (B, 3, H, W), or (B, 3, F, H, W) of films, in [-1, 1], on the autoencoder's device. An
    autoencoder without a posterior has a std of zero.
    """
    rule = _rule(type(vae).__name__)
    single = bool(rule.frames) and pixels.ndim == 4  # a film of one frame
    with torch.no_grad():
        pixels = pixels.to(vae.dtype)
        if rule.alpha:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        output = vae.encode(pixels[:, :, None] if single else pixels)
        if hasattr(output, "latent_dist"):
            mean, std = output.latent_dist.mean.float(), output.latent_dist.std.float()
        else:
            mean, std = output.latent.float(), torch.zeros_like(output.latent, dtype=torch.float32)
        if single:
            mean, std = mean[:, :, 0], std[:, :, 0]
        offset, scale = _statistics(rule, vae, mean.ndim)
        return (_patchify(mean, rule.patch, vae) - offset) / scale, _patchify(std, rule.patch, vae) / scale


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W), of films (B, 3, F, H, W), about [-1, 1], float32, from normalised latents."""
    rule = _rule(type(vae).__name__)
    single = bool(rule.frames) and latents.ndim == 4
    with torch.no_grad():
        offset, scale = _statistics(rule, vae, latents.ndim)
        raw = _unpatchify(latents.float() * scale + offset, rule.patch, vae).to(vae.dtype)
        time = (torch.zeros(len(raw), device=raw.device),) if _has_timestep_conditioning(vae) else ()
        pixels: torch.Tensor = vae.decode(raw[:, :, None] if single else raw, *time, return_dict=False)[0]
        return (pixels[:, :, 0] if single else pixels)[:, :3].float()


def _has_timestep_conditioning(vae: Any) -> bool:
    """LTX's later autoencoders finish the denoising; at time zero there is nothing left of it."""
    return bool(vae.config.get("timestep_conditioning"))


def _statistics(rule: VaeSpec, vae: Any, axes: int) -> Statistics:
    """The rule's statistics for latents of `axes` axes."""
    offset, scale = (
        value[..., None] if isinstance(value, torch.Tensor) and axes == 5 else value
        for value in rule.statistics(vae)
    )
    return offset, scale


def spatial_compression(class_name: str, config: Mapping[str, Any]) -> int:
    """Pixels per side that one normalised latent stands for."""
    rule = _rule(class_name)
    return rule.side(config) * rule.patch


def temporal_compression(class_name: str, config: Mapping[str, Any]) -> int:
    """Frames that one latent of a film stands for, but for the first: F latents are (F - 1) * step + 1."""
    rule = _rule(class_name)
    return rule.frames(config) if rule.frames else 1


def latent_shape(class_name: str, config: Mapping[str, Any], width: int, height: int) -> tuple[int, int, int]:
    """(C, H, W) of the normalised latents of a picture of width x height pixels."""
    rule, pixels = _rule(class_name), spatial_compression(class_name, config)
    if width % pixels or height % pixels:
        raise ConfigError(
            f"{width} x {height} pixels do not divide into latents", remedy=f"use multiples of {pixels}"
        )
    return int(config[rule.channels]) * rule.patch**2, height // pixels, width // pixels


def _patchify(raw: torch.Tensor, patch: int, vae: Any) -> torch.Tensor:
    """(B, C, H*p, W*p) -> (B, C*p*p, H, W), ordered by channel, row in patch, column in patch.

    A family whose pipeline orders them by row, column, channel says `patch_channels_last`.
    """
    folded = torch.nn.functional.pixel_unshuffle(raw, patch)
    return _transpose_channels(folded, patch**2) if vae.config.get("patch_channels_last") else folded


def _unpatchify(latents: torch.Tensor, patch: int, vae: Any) -> torch.Tensor:
    if vae.config.get("patch_channels_last"):
        latents = _transpose_channels(latents, latents.shape[1] // patch**2)
    return torch.nn.functional.pixel_shuffle(latents, patch)


def _transpose_channels(latents: torch.Tensor, inner: int) -> torch.Tensor:
    """Channels ordered by (outer, inner) become ordered by (inner, outer)."""
    return latents.unflatten(1, (-1, inner)).transpose(1, 2).flatten(1, 2)
