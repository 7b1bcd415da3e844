"""Chroma: Flux.1 schnell without its modulation layers, with a mask over the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import ComponentSpec, LatentSpec

if TYPE_CHECKING:
    import torch


class Chroma(Family):
    """Lodestone Rock 2025, https://huggingface.co/lodestones/Chroma1-HD."""

    name = "chroma"
    title = "Chroma"
    pipelines = ("ChromaPipeline",)
    rank16_parameters = "26.1 M"
    license = "Apache-2.0"
    components = ComponentSpec(optional=("image_encoder", "feature_extractor"))
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _, mask, *_ = pipe.encode_prompt(
            captions,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 512),
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}  # (1, 512, D), (1, 512)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy_latents.shape[2:]
        text, tokens = cond["prompt_embeds"], pack_latents(noisy_latents)
        ones = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask = torch.cat([cond["prompt_attention_mask"], ones], dim=1)
        prediction = denoiser(
            hidden_states=tokens,
            timestep=timesteps.to(noisy_latents.dtype) / 1000,
            encoder_hidden_states=text,
            txt_ids=noisy_latents.new_zeros(text.shape[1], 3),
            img_ids=position_ids(1, height // 2, width // 2, device=noisy_latents.device),
            attention_mask=mask,
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width)

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)
