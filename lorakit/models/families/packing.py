"""Latents and text as token sequences, in the layout of most transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pack_latents(latents: torch.Tensor, patch_size: int = 2) -> torch.Tensor:
    """Pack (B, C, H, W) into (B, H*W / patch_size^2, C * patch_size^2); a token is ordered by channel, row,
    column."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents, patch_size).flatten(2).transpose(1, 2)


def unpack_latents(tokens: torch.Tensor, height: int, width: int, patch_size: int = 2) -> torch.Tensor:
    """Undo `pack_latents`; `height` and `width` are those of the latents."""
    from torch.nn.functional import pixel_shuffle

    grid = tokens.transpose(1, 2).unflatten(2, (height // patch_size, width // patch_size))
    return pixel_shuffle(grid, patch_size)


def position_ids(*sizes: int, device: torch.device) -> torch.Tensor:
    """Return the coordinates (product of sizes, axes) of a grid in reading order, one axis for each size."""
    import torch

    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))


def small_vector(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Return numbers (N,) in the data type of `like`, without a copy from the host, which would wait for the
    device."""
    import torch

    return torch.cat([like.new_full((1,), value) for value in values])


def pad_text(text: torch.Tensor, length: int) -> torch.Tensor:
    """Pad (B, L, ...) with zeros to `length`, for pipelines that need caption and negative equally long."""
    import torch

    missing = max(length - text.shape[1], 0)
    return torch.cat([text, text.new_zeros(len(text), missing, *text.shape[2:])], dim=1)


def unshift_timestep(timesteps: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the timesteps (B,) that CogView4 and GLM-Image give their network at sigma = timesteps / 1000.

    Their scheduler shifts sigmas by the number of image tokens, sigma = mu u / (1 + (mu - 1) u), but passes
    u * 1000 to the network.
    """
    mu, sigma = 0.75 * (tokens / 256) ** 0.5 + 0.25, timesteps.double() / 1000
    return (1000 * sigma / (mu - (mu - 1) * sigma)).to(timesteps.dtype)


def unpack_video_latents(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Unpack (B, F*H*W, C) into (B, C, F, H, W), the shape of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape)
