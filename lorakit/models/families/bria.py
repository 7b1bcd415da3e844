"""Bria 3.2: Flux.1's transformer with time in thousandths, conditioned on T5 alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch


class Bria(Family):
    """Bria 2025, https://huggingface.co/briaai/BRIA-3.2."""

    name = "bria"
    title = "Bria 3.2"
    pipelines = ("BriaPipeline",)
    rank16 = "26.1 M"
    licence = "CC BY-NC 4.0 (commercial use by agreement)"
    left_out = ("image_encoder", "feature_extractor")
    always = ("vae",)  # whose shift the pipeline looks at when it is made
    patch = 2

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, _ = pipe.encode_prompt(
            captions,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 128),
        )
        return {"prompt_embeds": embeds * 0 if captions == [""] else embeds}  # (1, 128, D)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        text, (height, width) = cond["prompt_embeds"], noisy.shape[2:]
        prediction = denoiser(
            hidden_states=pack_latents(noisy),
            timestep=t,
            encoder_hidden_states=text,
            txt_ids=noisy.new_zeros(text.shape[1], 3),
            img_ids=position_ids(1, height // 2, width // 2, device=noisy.device),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width)

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)
