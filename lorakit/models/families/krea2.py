"""Krea 2: a single-stream transformer that fuses many layers of a vision-language model's text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import ATTENTION_TARGETS, Conditioning, Family
from lorakit.models.families.packing import pack_latents, pad_text, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import CallSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch


class Krea2(Family):
    """Krea 2026, https://huggingface.co/krea/Krea-2-Raw. Train on Raw; the adapter serves Turbo too."""

    name = "krea2"
    title = "Krea 2"
    pipelines = ("Krea2Pipeline",)
    rank16_parameters = "25.0 M"
    license = "Krea 2 Community"
    target_modules: ClassVar[list[str]] = [*ATTENTION_TARGETS, "to_gate"]
    text = TextSpec(masks={"prompt_embeds_mask": ("prompt_embeds",)})
    call = CallSpec(guidance_off=0.0)
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        length = max_sequence_length(pipe, 512)
        embeds, mask = pipe.encode_prompt(captions, pipe.text_encoder.device, max_sequence_length=length)
        kept = mask[0]  # the padding in the middle may be dropped, because text has no positions
        return {"prompt_embeds": embeds[:, kept], "prompt_embeds_mask": mask[:, kept]}  # (1, L, layers, D)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        from diffusers import Krea2Pipeline

        text, (height, width) = cond["prompt_embeds"], noisy_latents.shape[2:]
        prediction = denoiser(
            hidden_states=pack_latents(noisy_latents),
            timestep=timesteps / 1000,  # embedded in float32, whatever the dtype of the rest
            encoder_hidden_states=text,
            encoder_attention_mask=cond["prompt_embeds_mask"],
            position_ids=Krea2Pipeline.prepare_position_ids(
                text.shape[1], height // 2, width // 2, noisy_latents.device
            ),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width)

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """Pad caption and negative to one length: the pipeline computes positions for both at once."""
        length = max_sequence_length(pipe, 512)
        return {name: pad_text(value, length) for name, value in cond.items()}
