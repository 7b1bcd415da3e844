"""Krea 2: a single-stream transformer that fuses many layers of a vision-language model's text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import ATTENTION_TARGETS, Conditioning, Family
from lorakit.models.families.packing import pack_latents, pad_text, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch


class Krea2(Family):
    """Krea 2026, https://huggingface.co/krea/Krea-2-Raw. Train on Raw; the adapter serves Turbo too."""

    name = "krea2"
    title = "Krea 2"
    pipelines = ("Krea2Pipeline",)
    rank16 = "25.0 M"
    licence = "Krea 2 Community"
    targets: ClassVar[list[str]] = [*ATTENTION_TARGETS, "to_gate"]
    unguided = 0.0
    patch = 2

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        length = max_sequence_length(pipe, 512)
        embeds, mask = pipe.encode_prompt(captions, pipe.text_encoder.device, max_sequence_length=length)
        kept = mask[0]  # the padding, which is in the middle, is of no consequence: text has no positions
        return {"prompt_embeds": embeds[:, kept], "prompt_embeds_mask": mask[:, kept]}  # (1, L, layers, D)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        from diffusers import Krea2Pipeline

        text, (height, width) = cond["prompt_embeds"], noisy.shape[2:]
        prediction = denoiser(
            hidden_states=pack_latents(noisy),
            timestep=t / 1000,  # embedded in float32, whatever the precision of the rest
            encoder_hidden_states=text,
            encoder_attention_mask=cond["prompt_embeds_mask"],
            position_ids=Krea2Pipeline.prepare_position_ids(
                text.shape[1], height // 2, width // 2, noisy.device
            ),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width)

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """The pipeline numbers the positions once, for the caption and the negative."""
        length = max_sequence_length(pipe, 512)
        return {name: pad_text(value, length) for name, value in cond.items()}
