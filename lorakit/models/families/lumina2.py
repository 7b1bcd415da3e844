"""Lumina-Image 2.0: text and image in one transformer, conditioned on Gemma 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pad_text
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch


class Lumina2(Family):
    """Qin et al. 2025, https://arxiv.org/abs/2503.21758."""

    name = "lumina2"
    title = "Lumina-Image 2.0"
    pipelines = ("Lumina2Pipeline",)
    rank16_parameters = "7.4 M"
    license = "Apache-2.0"
    text = TextSpec(masks={"prompt_attention_mask": ("prompt_embeds",)})
    # the pipeline's shift counts channels where others count tokens
    latents = LatentSpec(patch_size=2, scheduler_shift=False)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        length = max_sequence_length(pipe, 256)
        embeds, mask, none, no_mask = pipe.encode_prompt(
            captions, negative_prompt=[""], device=pipe.text_encoder.device, max_sequence_length=length
        )
        if captions == [""]:  # the pipeline encodes the empty caption without the system prompt
            embeds, mask = none, no_mask
        kept = mask[0].bool()
        return {"prompt_embeds": embeds[:, kept], "prompt_attention_mask": mask[:, kept]}

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy_latents,
            timestep=1 - timesteps / 1000,  # time and velocity run from noise to image
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return -prediction

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """Pad caption and negative to one length, which the pipeline needs."""
        length = max_sequence_length(pipe, 256)
        return {name: pad_text(value, length) for name, value in cond.items()}
