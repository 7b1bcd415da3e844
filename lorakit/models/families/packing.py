"""Latents and text as sequences, the way most transformers take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pack_latents(latents: torch.Tensor, patch: int = 2) -> torch.Tensor:
    """(B, C, H, W) -> (B, H*W / patch^2, C * patch^2); a patch is ordered by channel, row, column."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def unpack_latents(tokens: torch.Tensor, height: int, width: int, patch: int = 2) -> torch.Tensor:
    """The way back; `height` and `width` are those of the latents."""
    from torch.nn.functional import pixel_shuffle

    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch)), patch)


def position_ids(*sizes: int, device: torch.device) -> torch.Tensor:
    """Coordinates (product of sizes, axes) of a grid in reading order, one axis for each size."""
    import torch

    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))


def pad_text(text: torch.Tensor, length: int) -> torch.Tensor:
    """(B, L, ...) with zeros at the end, for pipelines that want caption and negative equally long."""
    import torch

    missing = max(length - text.shape[1], 0)
    return torch.cat([text, text.new_zeros(len(text), missing, *text.shape[2:])], dim=1)


def unshift_timestep(t: torch.Tensor, tokens: int) -> torch.Tensor:
    """The time that CogView4 and GLM-Image show their model at noise level t / 1000 (B,).

    Their scheduler moves noise levels up with the number of image tokens, level = mu u / (1 + (mu - 1) u),
    but the time stays u * 1000.
    """
    mu, level = 0.75 * (tokens / 256) ** 0.5 + 0.25, t.double() / 1000
    return (1000 * level / (mu - (mu - 1) * level)).to(t.dtype)


def unpack_video_latents(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, F*H*W, C) -> (B, C, F, H, W), the shape of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape)
