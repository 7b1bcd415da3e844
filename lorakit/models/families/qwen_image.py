"""Qwen-Image: a joint transformer of text and picture, conditioned on a vision-language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch


class QwenImage(Family):
    """Wu et al. 2025, https://arxiv.org/abs/2508.02324."""

    name = "qwen-image"
    title = "Qwen-Image"
    pipelines = ("QwenImagePipeline",)
    rank16 = "47.2 M"
    licence = "Apache-2.0"
    guidance = "true_cfg_scale"
    patch = 2

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions, pipe.text_encoder.device, max_sequence_length=max_sequence_length(pipe, 512)
        )
        mask = embeds.new_ones(embeds.shape[:2], dtype=bool)  # one caption has no padding
        return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}  # (1, L, D), (1, L)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = noisy.shape[2:]
        shapes = [(1, height // 2, width // 2)]
        return unpack_latents(self._tokens(denoiser, pack_latents(noisy), shapes, t, cond), height, width)

    def _tokens(
        self,
        denoiser: Any,
        tokens: torch.Tensor,
        shapes: list[tuple[int, int, int]],
        t: torch.Tensor,
        cond: Conditioning,
    ) -> torch.Tensor:
        """The network's output (B, N, C) for the tokens (B, N, ...) of pictures of these shapes."""
        output: torch.Tensor = denoiser(
            hidden_states=tokens,
            timestep=t.to(tokens.dtype) / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_hidden_states_mask=cond["prompt_embeds_mask"],
            img_shapes=[shapes] * len(tokens),
            return_dict=False,
        )[0]
        return output

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)
