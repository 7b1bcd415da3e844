"""Flux.1 dev and schnell: a joint transformer of text and packed latents, trained with rectified flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch


class Flux1(Family):
    """Black Forest Labs 2024, https://bfl.ai/blog/24-08-01-bfl."""

    name = "flux1"
    title = "Flux.1 dev / schnell"
    pipelines = ("FluxPipeline",)
    rank16 = "26.1 M"
    licence = "Apache-2.0 (schnell); FLUX.1 non-commercial (dev)"
    left_out = ("image_encoder", "feature_extractor")
    patch = 2

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, pooled, _ = pipe.encode_prompt(
            captions,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 512),
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (1, 512, D), (1, P)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = noisy.shape[2:]
        places = position_ids(1, height // 2, width // 2, device=noisy.device)
        return unpack_latents(self._tokens(denoiser, pack_latents(noisy), places, t, cond), height, width)

    def _tokens(
        self, denoiser: Any, tokens: torch.Tensor, places: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """The network's output (B, N, C) for image tokens (B, N, ...) at `places` (N, 3)."""
        text = cond["prompt_embeds"]
        # dev has guidance distilled into it, and 1 is none; schnell has no such input
        guidance = tokens.new_ones(len(tokens)) if denoiser.config.guidance_embeds else None
        output: torch.Tensor = denoiser(
            hidden_states=tokens,
            timestep=t.to(tokens.dtype) / 1000,
            guidance=guidance,
            pooled_projections=cond["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=tokens.new_zeros(text.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return output

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        return False  # guidance is an input of the network

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)
