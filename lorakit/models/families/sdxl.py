"""SDXL: a U-Net told the picture's size, conditioned on two CLIP text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import NO_SHIFT, Conditioning, Family

if TYPE_CHECKING:
    import torch

PIXELS = 8  # per latent and side, in every published autoencoder of the family


class StableDiffusionXL(Family):
    """Podell et al. 2023, https://arxiv.org/abs/2307.01952."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    pipelines = ("StableDiffusionXLPipeline",)
    rank16 = "23.2 M"
    licence = "CreativeML Open RAIL++-M"
    objective = "ddpm"
    component = "unet"
    left_out = ("feature_extractor", "image_encoder")
    vae_settings = NO_SHIFT
    unread_layers: ClassVar[Mapping[str, int]] = {"text_encoder": 1}  # the second one's is pooled
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder_2.device, do_classifier_free_guidance=False
        )
        if captions == [""] and pipe.config.force_zeros_for_empty_prompt:
            embeds, pooled = embeds * 0, pooled * 0
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (1, 77, D), (1, P)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        text = cond["prompt_embeds"]
        height, width = (PIXELS * side for side in noisy.shape[2:])
        sizes = text.new_tensor([height, width, 0, 0, height, width])  # original, corner of the crop, target
        added = {"text_embeds": cond["pooled_prompt_embeds"], "time_ids": sizes.expand(len(noisy), -1)}
        return denoiser(noisy, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
