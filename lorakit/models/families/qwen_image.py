"""Qwen-Image: a joint transformer of text and image, conditioned on a vision-language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import CallSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch


class QwenImage(Family):
    """Wu et al. 2025, https://arxiv.org/abs/2508.02324."""

    name = "qwen-image"
    title = "Qwen-Image"
    pipelines = ("QwenImagePipeline",)
    rank16_parameters = "47.2 M"
    license = "Apache-2.0"
    text = TextSpec(masks={"prompt_embeds_mask": ("prompt_embeds",)})
    call = CallSpec(guidance_argument="true_cfg_scale")
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions, pipe.text_encoder.device, max_sequence_length=max_sequence_length(pipe, 512)
        )
        mask = embeds.new_ones(embeds.shape[:2], dtype=bool)  # one caption has no padding
        return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}  # (1, L, D), (1, L)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = noisy_latents.shape[2:]
        shapes = [(1, height // 2, width // 2)]
        return unpack_latents(
            self._forward_tokens(denoiser, pack_latents(noisy_latents), shapes, timesteps, cond),
            height,
            width,
        )

    def _forward_tokens(
        self,
        denoiser: Any,
        tokens: torch.Tensor,
        shapes: list[tuple[int, int, int]],
        timesteps: torch.Tensor,
        cond: Conditioning,
    ) -> torch.Tensor:
        """Return the network's output (B, N, C) for the tokens (B, N, ...) of images of these shapes."""
        output: torch.Tensor = denoiser(
            hidden_states=tokens,
            timestep=timesteps.to(tokens.dtype) / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_hidden_states_mask=cond["prompt_embeds_mask"],
            img_shapes=[shapes] * len(tokens),
            return_dict=False,
        )[0]
        return output

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)
