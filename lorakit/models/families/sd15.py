"""Stable Diffusion 1.x and 2.x: a U-Net that predicts noise (or v) from integer timesteps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.specs import NO_SHIFT, ComponentSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch


class StableDiffusion15(Family):
    """Rombach et al. 2022, https://arxiv.org/abs/2112.10752."""

    name = "sd15"
    title = "Stable Diffusion 1.5 / 2.x"
    pipelines = ("StableDiffusionPipeline",)
    objective = "ddpm"
    rank16_parameters = "3.2 M (1.5), 3.3 M (2.x)"
    license = "CreativeML Open RAIL-M (1.x); Open RAIL++-M (2.x)"
    # the safety checker would blacken samples by mistake, and spoil their scores
    components = ComponentSpec(
        denoiser="unet", optional=("safety_checker", "feature_extractor", "image_encoder")
    )
    text = TextSpec(trainable_encoders=("text_encoder",))
    latents = LatentSpec(vae_overrides=NO_SHIFT)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, 1, False)
        return {"prompt_embeds": embeds}  # (B, L, D)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(
            noisy_latents, timesteps, encoder_hidden_states=cond["prompt_embeds"], return_dict=False
        )[0]
