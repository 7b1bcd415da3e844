"""SDXL inpainting: the U-Net has five more channels, the mask and the masked image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import InpaintingFamily
from lorakit.models.families.family import Conditioning
from lorakit.models.families.sdxl import StableDiffusionXL

if TYPE_CHECKING:
    import torch


class StableDiffusionXLInpaint(InpaintingFamily, StableDiffusionXL):
    """Podell et al. 2023, https://arxiv.org/abs/2307.01952."""

    name = "sdxl-inpaint"
    title = "Stable Diffusion XL inpainting"
    pipelines = ("StableDiffusionXLInpaintPipeline",)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return super().predict(denoiser, self._join_channels(noisy_latents, cond), timesteps, cond)
