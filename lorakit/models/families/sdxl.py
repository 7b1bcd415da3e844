"""SDXL: a U-Net conditioned on the image's size and on two CLIP text encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import small_vector
from lorakit.models.families.specs import NO_SHIFT, ComponentSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch

PIXELS = 8  # per side of one latent, in every published VAE of the family


class StableDiffusionXL(Family):
    """Podell et al. 2023, https://arxiv.org/abs/2307.01952."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    pipelines = ("StableDiffusionXLPipeline",)
    rank16_parameters = "23.2 M"
    license = "CreativeML Open RAIL++-M"
    components = ComponentSpec(denoiser="unet", optional=("feature_extractor", "image_encoder"))
    # the pooled embedding reads the second encoder's last layer
    text = TextSpec(trainable_encoders=("text_encoder", "text_encoder_2"), skipped_layers={"text_encoder": 1})
    latents = LatentSpec(vae_overrides=NO_SHIFT)
    objective = "ddpm"

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder_2.device, do_classifier_free_guidance=False
        )
        if captions == [""] and pipe.config.force_zeros_for_empty_prompt:
            embeds, pooled = embeds * 0, pooled * 0
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (1, 77, D), (1, P)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        text = cond["prompt_embeds"]
        height, width = (PIXELS * side for side in noisy_latents.shape[2:])
        # original size, corner of the crop, target size
        sizes = small_vector([height, width, 0, 0, height, width], text)
        added = {
            "text_embeds": cond["pooled_prompt_embeds"],
            "time_ids": sizes.expand(len(noisy_latents), -1),
        }
        return denoiser(
            noisy_latents, timesteps, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
        )[0]
