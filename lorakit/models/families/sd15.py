"""Stable Diffusion 1.x and 2.x: a U-Net that predicts noise (or v) from integer timesteps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import NO_SHIFT, Conditioning, Family

if TYPE_CHECKING:
    import torch


class StableDiffusion15(Family):
    """Rombach et al. 2022, https://arxiv.org/abs/2112.10752."""

    name = "sd15"
    title = "Stable Diffusion 1.5 / 2.x"
    pipelines = ("StableDiffusionPipeline",)
    objective = "ddpm"
    component = "unet"
    # The checker blackens pictures it mistakes, which would spoil samples and scores.
    left_out = ("safety_checker", "feature_extractor", "image_encoder")
    vae_settings = NO_SHIFT
    text_encoders = ("text_encoder",)
    rank16 = "3.2 M (1.5), 3.3 M (2.x)"
    licence = "CreativeML Open RAIL-M (1.x); Open RAIL++-M (2.x)"

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(captions, pipe.text_encoder.device, 1, False)
        return {"prompt_embeds": embeds}  # (B, L, D)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        return denoiser(noisy, t, encoder_hidden_states=cond["prompt_embeds"], return_dict=False)[0]
