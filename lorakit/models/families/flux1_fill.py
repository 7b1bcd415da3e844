"""Flux.1 Fill: paints into a picture; what lies around and the mask are further channels of each token."""

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
    licence = "FLUX.1 non-commercial"

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy.shape[2:]
        channels = [noisy, cond["around_latents"][:, 0], cond["mask_latents"][:, 0]]
        places = position_ids(1, height // 2, width // 2, device=noisy.device)
        tokens = pack_latents(torch.cat(channels, dim=1))
        return unpack_latents(self._tokens(denoiser, tokens, places, t, cond), height, width)

    def _mask(self, mask: torch.Tensor, step: int) -> torch.Tensor:
        """Every pixel of the mask is a channel of the latent it lies in."""
        from torch.nn.functional import pixel_unshuffle

        return pixel_unshuffle(mask, step)
