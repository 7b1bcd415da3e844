"""CogView4: a joint transformer told the picture's size, conditioned on GLM-4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.by_length import TEXT_MASK, UnpaddedTextFamily
from lorakit.models.families.family import NO_SHIFT, Conditioning
from lorakit.models.families.packing import unshift_timestep
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch

PIXELS = 8  # per latent and side, in the published autoencoder


class CogView4(UnpaddedTextFamily):
    """Zhipu 2025, https://huggingface.co/zai-org/CogView4-6B."""

    name = "cogview4"
    title = "CogView4"
    pipelines = ("CogView4Pipeline",)
    rank16 = "14.7 M"
    licence = "Apache-2.0"
    patch = 2
    own_shift = True
    vae_settings = NO_SHIFT

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 1024),
        )
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        text = cond["prompt_embeds"]
        size = text.new_tensor([PIXELS * side for side in noisy.shape[2:]]).expand(len(noisy), -1)
        return denoiser(
            hidden_states=noisy,
            encoder_hidden_states=text,
            timestep=unshift_timestep(t, noisy.shape[2] * noisy.shape[3] // self.patch**2),
            original_size=size,
            target_size=size,
            crop_coords=size * 0,
            return_dict=False,
        )[0]
