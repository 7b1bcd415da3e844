"""Pixels to normalized latents and back: one `VaeSpec` for each VAE class.

The denoiser gets latents of about unit variance. Their normalization (a scale and a shift, statistics of each
channel, or running batch statistics over 2 x 2 patches) depends on the VAE class; it is defined once here and
tested against each pipeline's own decoding and image encoding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorakit.core.errors import ConfigError


@dataclass(frozen=True)
class Statistics:
    """A normalized latent is (raw - offset) / scale."""

    offset: torch.Tensor | float
    scale: torch.Tensor | float


@dataclass(frozen=True)
class LatentDistribution:
    """Posterior of a VAE in normalized latents, float32: `mean + std * noise` is a sample."""

    mean: torch.Tensor
    std: torch.Tensor


CompressionFn = Callable[[Mapping[str, Any]], int]
"""(configuration of a VAE) -> pixels per side, or frames, of one raw latent."""


def _shift_and_scale(vae: Any) -> Statistics:
    scale = 1.0 / float(vae.config["scaling_factor"])
    if vae.config.get("latents_mean") is not None:  # some SDXL descendants
        mean, std = (_channels(vae, vae.config[name]) for name in ("latents_mean", "latents_std"))
        return Statistics(mean, std * scale)
    return Statistics(float(vae.config.get("shift_factor") or 0.0), scale)


def _mean_and_std(vae: Any) -> Statistics:
    return Statistics(_channels(vae, vae.config["latents_mean"]), _channels(vae, vae.config["latents_std"]))


def _batch_norm(vae: Any) -> Statistics:
    deviation = torch.sqrt(vae.bn.running_var.float() + vae.config["batch_norm_eps"])
    return Statistics(_channels(vae, vae.bn.running_mean), _channels(vae, deviation))


def _buffers(vae: Any) -> Statistics:
    scale = float(vae.config["scaling_factor"])
    return Statistics(_channels(vae, vae.latents_mean), _channels(vae, vae.latents_std) / scale)


def _scale_only(vae: Any) -> Statistics:
    return Statistics(0.0, 1.0 / float(vae.config["scaling_factor"]))


def _channels(vae: Any, values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=vae.device).view(1, -1, 1, 1)


def _downsampling_levels(levels: str, folded: str = "") -> CompressionFn:
    """Double at each level but the first, after the fold; both arguments are names of settings."""
    return lambda config: int(2 ** (len(config[levels]) - 1) * (config.get(folded) or 1))


_BLOCKS = _downsampling_levels("block_out_channels")


def _from_config(axis: str) -> CompressionFn:
    return lambda config: int(config[f"{axis}_compression_ratio"])


def _ltx(axis: str, patch: str) -> CompressionFn:
    """Read the ratio; if it is missing, pixels or frames are folded and then halved at each scaling level."""
    return lambda config: int(
        config.get(f"{axis}_compression_ratio") or config[patch] * 2 ** sum(config["spatio_temporal_scaling"])
    )


def _wan_frames(config: Mapping[str, Any]) -> int:
    return int(2 ** sum(config["temperal_downsample"]))


@dataclass(frozen=True)
class VaeSpec:
    """Conversion between one VAE class's raw latents (B, C, H, W) and the denoiser's."""

    statistics: Callable[[Any], Statistics] = _shift_and_scale
    """Offset and scale, from the VAE."""
    side: CompressionFn = _BLOCKS
    """Pixels per side of one raw latent."""
    patch: int = 1
    """Raw positions per side that are folded into channels."""
    channels: str = "latent_channels"
    """Name of the setting with the number of raw channels."""
    frames: CompressionFn | None = None
    """For video VAEs (B, C, F, H, W): frames of one latent; the first latent holds one frame only."""
    alpha: bool = False
    """True if images have an alpha channel; lorakit's are opaque."""


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


def _spec(class_name: str) -> VaeSpec:
    try:
        return VAE_SPECS[class_name]
    except KeyError:
        raise ConfigError(
            f"the VAE class {class_name} is not supported", remedy=f"known: {', '.join(VAE_SPECS)}"
        ) from None


def encode_latents(vae: Any, pixels: torch.Tensor) -> LatentDistribution:
    """Encode pixels (B, 3, H, W), or (B, 3, F, H, W) of videos, in [-1, 1], on the VAE's device.

    The std is zero for a VAE without a posterior.
    """
    spec = _spec(type(vae).__name__)
    single = bool(spec.frames) and pixels.ndim == 4  # a video of one frame
    with torch.no_grad():
        pixels = pixels.to(vae.dtype)
        if spec.alpha:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        output = vae.encode(pixels[:, :, None] if single else pixels)
        if hasattr(output, "latent_dist"):
            mean, std = output.latent_dist.mean.float(), output.latent_dist.std.float()
        else:
            mean, std = output.latent.float(), torch.zeros_like(output.latent, dtype=torch.float32)
        if single:
            mean, std = mean[:, :, 0], std[:, :, 0]
        statistics = _statistics(spec, vae, mean.ndim)
        return LatentDistribution(
            (_patchify(mean, spec.patch, vae) - statistics.offset) / statistics.scale,
            _patchify(std, spec.patch, vae) / statistics.scale,
        )


def encode_gray(vae: Any) -> LatentDistribution:
    """Encode a small gray image, or a video of one such frame."""
    side = 2 * spatial_compression(type(vae).__name__, vae.config)
    return encode_latents(vae, torch.zeros(1, 3, side, side, device=vae.device))


def find_bad_statistics(vae: Any) -> str | None:
    """Return the first value of the normalization that makes latents infinite; None if there is none."""
    statistics = _spec(type(vae).__name__).statistics(vae)
    offset, scale = (torch.as_tensor(value).float() for value in (statistics.offset, statistics.scale))
    if not torch.isfinite(offset).all():
        return f"offset {offset[~torch.isfinite(offset)][0]:g}"
    if not (torch.isfinite(scale) & (scale != 0)).all():
        return f"scale {scale[~torch.isfinite(scale) | (scale == 0)][0]:g}"
    return None


def compute_in_float32(vae: Any) -> None:
    """Let a VAE encode and decode in float32, in place, whatever its data type and an autocast around it.

    Some VAEs, SDXL's among them, overflow in float16. Encodings are returned in the data type of the pixels.
    """
    for name in ("encode", "decode"):
        setattr(vae, name, _in_float32(vae, getattr(vae, name), keep_dtype=name == "encode"))


def _in_float32(vae: Any, method: Callable[..., Any], *, keep_dtype: bool) -> Callable[..., Any]:
    @functools.wraps(method)
    def compute(values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        dtype: torch.dtype = vae.dtype
        torch.nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns
        try:
            with torch.autocast(values.device.type, enabled=False):
                output = method(values.float(), *args, **kwargs)
        finally:
            torch.nn.Module.to(vae, dtype)
        return _cast_encoding(output, values.dtype) if keep_dtype else output

    return compute


@contextlib.contextmanager
def watch_decoded_latents(vae: Any) -> Iterator[list[bool]]:
    """Yield a list that gets a True for each call of `vae.decode` inside the block with non-finite latents.

    A pipeline turns such latents into a black image. Without a VAE the list stays empty.
    """
    calls: list[bool] = []
    if vae is None:
        yield calls
        return
    replaced, decode = vae.__dict__.get("decode"), vae.decode

    @functools.wraps(decode)
    def watched(values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.isfinite(values).all():
            calls.append(True)
        return decode(values, *args, **kwargs)

    vae.decode = watched
    try:
        yield calls
    finally:
        if replaced is None:
            del vae.decode
        else:
            vae.decode = replaced


def _cast_encoding(output: Any, dtype: torch.dtype) -> Any:
    """Cast what a VAE's `encode` returns: a posterior, latents, or a tuple of them."""
    if isinstance(output, torch.Tensor):
        return output.to(dtype)
    if isinstance(output, tuple):
        return tuple(_cast_encoding(part, dtype) for part in output)
    if hasattr(output, "parameters"):  # a posterior
        return type(output)(output.parameters.to(dtype))
    for name, value in output.items():
        output[name] = _cast_encoding(value, dtype)
    return output


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode normalized latents to pixels (B, 3, H, W), of videos (B, 3, F, H, W), float32, about [-1, 1]."""
    spec = _spec(type(vae).__name__)
    single = bool(spec.frames) and latents.ndim == 4
    with torch.no_grad():
        statistics = _statistics(spec, vae, latents.ndim)
        raw = _unpatchify(latents.float() * statistics.scale + statistics.offset, spec.patch, vae).to(
            vae.dtype
        )
        time = (torch.zeros(len(raw), device=raw.device),) if _has_timestep_conditioning(vae) else ()
        pixels: torch.Tensor = vae.decode(raw[:, :, None] if single else raw, *time, return_dict=False)[0]
        return (pixels[:, :, 0] if single else pixels)[:, :3].float()


def _has_timestep_conditioning(vae: Any) -> bool:
    """Return True for LTX's later VAEs, which can finish the denoising; at timestep zero they only decode."""
    return bool(vae.config.get("timestep_conditioning"))


def _statistics(spec: VaeSpec, vae: Any, axes: int) -> Statistics:
    """Return the statistics for latents with this number of axes."""
    statistics = spec.statistics(vae)
    offset, scale = (
        value[..., None] if isinstance(value, torch.Tensor) and axes == 5 else value
        for value in (statistics.offset, statistics.scale)
    )
    return Statistics(offset, scale)


def spatial_compression(class_name: str, config: Mapping[str, Any]) -> int:
    """Return the pixels per side of one normalized latent."""
    spec = _spec(class_name)
    return spec.side(config) * spec.patch


def temporal_compression(class_name: str, config: Mapping[str, Any]) -> int:
    """Return the number N of frames of one video latent: F latents are (F - 1) * N + 1 frames."""
    spec = _spec(class_name)
    return spec.frames(config) if spec.frames else 1


def latent_shape(class_name: str, config: Mapping[str, Any], width: int, height: int) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of an image's normalized latents; ConfigError for unsupported sizes."""
    spec, pixels = _spec(class_name), spatial_compression(class_name, config)
    if width % pixels or height % pixels:
        raise ConfigError(
            f"{width} x {height} pixels do not divide into latents", remedy=f"use multiples of {pixels}"
        )
    return int(config[spec.channels]) * spec.patch**2, height // pixels, width // pixels


def _patchify(raw: torch.Tensor, patch: int, vae: Any) -> torch.Tensor:
    """Fold (B, C, H*p, W*p) into (B, C*p*p, H, W), ordered by channel, row in patch, column in patch.

    A family whose pipeline orders them by row, column, channel sets `patch_channels_last` in the VAE's
    configuration.
    """
    folded = torch.nn.functional.pixel_unshuffle(raw, patch)
    return _transpose_channels(folded, patch**2) if vae.config.get("patch_channels_last") else folded


def _unpatchify(latents: torch.Tensor, patch: int, vae: Any) -> torch.Tensor:
    if vae.config.get("patch_channels_last"):
        latents = _transpose_channels(latents, latents.shape[1] // patch**2)
    return torch.nn.functional.pixel_shuffle(latents, patch)


def _transpose_channels(latents: torch.Tensor, inner: int) -> torch.Tensor:
    """Reorder channels from (outer, inner) to (inner, outer)."""
    return latents.unflatten(1, (-1, inner)).transpose(1, 2).flatten(1, 2)
