"""Bria 3.2: Flux.1's transformer with timesteps of 0 to 1000, conditioned on T5 alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import ComponentSpec, LatentSpec

if TYPE_CHECKING:
    import torch


class Bria(Family):
    """Bria 2025, https://huggingface.co/briaai/BRIA-3.2."""

    name = "bria"
    title = "Bria 3.2"
    pipelines = ("BriaPipeline",)
    rank16_parameters = "26.1 M"
    license = "CC BY-NC 4.0 (commercial use by agreement)"
    # the pipeline reads the VAE's shift when it is built
    components = ComponentSpec(optional=("image_encoder", "feature_extractor"), always_loaded=("vae",))
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, _ = pipe.encode_prompt(
            captions,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 128),
        )
        return {"prompt_embeds": embeds * 0 if captions == [""] else embeds}  # (1, 128, D)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        text, (height, width) = cond["prompt_embeds"], noisy_latents.shape[2:]
        prediction = denoiser(
            hidden_states=pack_latents(noisy_latents),
            timestep=timesteps,
            encoder_hidden_states=text,
            txt_ids=noisy_latents.new_zeros(text.shape[1], 3),
            img_ids=position_ids(1, height // 2, width // 2, device=noisy_latents.device),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width)

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)
