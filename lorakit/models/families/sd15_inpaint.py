"""Stable Diffusion 1.5 and 2 inpainting: the U-Net has five more channels, the mask and the masked image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import InpaintingFamily
from lorakit.models.families.family import Conditioning
from lorakit.models.families.sd15 import StableDiffusion15

if TYPE_CHECKING:
    import torch


class StableDiffusion15Inpaint(InpaintingFamily, StableDiffusion15):
    """Rombach et al. 2022, https://arxiv.org/abs/2112.10752."""

    name = "sd15-inpaint"
    title = "Stable Diffusion 1.5 / 2.x inpainting"
    pipelines = ("StableDiffusionInpaintPipeline",)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return super().predict(denoiser, self._join_channels(noisy_latents, cond), timesteps, cond)
