"""Kolors: SDXL's U-Net conditioned on ChatGLM, trained on 1100 timesteps instead of 1000."""

from __future__ import annotations

from typing import Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.sdxl import StableDiffusionXL
from lorakit.models.families.specs import TextSpec


class Kolors(StableDiffusionXL):
    """Kuaishou 2024, https://github.com/Kwai-Kolors/Kolors."""

    name = "kolors"
    title = "Kolors"
    pipelines = ("KolorsPipeline",)
    rank16_parameters = "23.2 M"
    license = "Kolors (commercial use by registration)"
    text = TextSpec()  # ChatGLM stays frozen

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipe.encode_prompt(
            captions, pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (1, 256, D), (1, D)
