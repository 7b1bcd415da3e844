"""Flux.1 Fill: inpainting; the masked image and the mask are additional channels of each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import InpaintingFamily
from lorakit.models.families.family import Conditioning
from lorakit.models.families.flux1 import Flux1
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents

if TYPE_CHECKING:
    import torch


class Flux1Fill(InpaintingFamily, Flux1):
    """Black Forest Labs 2024, https://bfl.ai/flux-1-tools."""

    name = "flux1-fill"
    title = "Flux.1 Fill"
    pipelines = ("FluxFillPipeline",)
    license = "FLUX.1 non-commercial"

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy_latents.shape[2:]
        channels = [noisy_latents, cond["masked_image_latents"][:, 0], cond["mask_latents"][:, 0]]
        positions = position_ids(1, height // 2, width // 2, device=noisy_latents.device)
        tokens = pack_latents(torch.cat(channels, dim=1))
        return unpack_latents(
            self._forward_tokens(denoiser, tokens, positions, timesteps, cond), height, width
        )

    def _mask_channels(self, mask: torch.Tensor, compression: int) -> torch.Tensor:
        """Make every pixel of the mask a channel of the latent that covers it."""
        from torch.nn.functional import pixel_unshuffle

        return pixel_unshuffle(mask, compression)
