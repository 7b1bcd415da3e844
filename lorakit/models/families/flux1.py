"""Flux.1 dev and schnell: a joint transformer of text and packed latents, trained with rectified flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import ComponentSpec, LatentSpec

if TYPE_CHECKING:
    import torch


class Flux1(Family):
    """Black Forest Labs 2024, https://bfl.ai/blog/24-08-01-bfl."""

    name = "flux1"
    title = "Flux.1 dev / schnell"
    pipelines = ("FluxPipeline",)
    rank16_parameters = "26.1 M"
    license = "Apache-2.0 (schnell); FLUX.1 non-commercial (dev)"
    components = ComponentSpec(optional=("image_encoder", "feature_extractor"))
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, pooled, _ = pipe.encode_prompt(
            captions,
            device=pipe.text_encoder.device,
            max_sequence_length=max_sequence_length(pipe, 512),
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (1, 512, D), (1, P)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = noisy_latents.shape[2:]
        positions = position_ids(1, height // 2, width // 2, device=noisy_latents.device)
        return unpack_latents(
            self._forward_tokens(denoiser, pack_latents(noisy_latents), positions, timesteps, cond),
            height,
            width,
        )

    def _forward_tokens(
        self,
        denoiser: Any,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        timesteps: torch.Tensor,
        cond: Conditioning,
    ) -> torch.Tensor:
        """Return the network's output (B, N, C) for image tokens (B, N, ...) at `positions` (N, 3)."""
        text = cond["prompt_embeds"]
        # guidance is distilled into dev, and 1 switches it off; schnell has no such input
        guidance = tokens.new_ones(len(tokens)) if denoiser.config.guidance_embeds else None
        output: torch.Tensor = denoiser(
            hidden_states=tokens,
            timestep=timesteps.to(tokens.dtype) / 1000,
            guidance=guidance,
            pooled_projections=cond["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=tokens.new_zeros(text.shape[1], 3),
            img_ids=positions,
            return_dict=False,
        )[0]
        return output

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        return False  # guidance is an input of the network

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)
