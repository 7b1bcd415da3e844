"""Kandinsky 5 text to image: a transformer over videos of one frame, with channels last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning
from lorakit.models.families.specs import NO_SHIFT, LatentSpec
from lorakit.models.families.unpadded import TEXT_MASK, UnpaddedTextFamily

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Kandinsky5(UnpaddedTextFamily):
    """Kandinsky Lab 2025, https://arxiv.org/abs/2511.14993. The text has no mask."""

    name = "kandinsky5"
    title = "Kandinsky 5 Image"
    pipelines = ("Kandinsky5T2IPipeline",)
    rank16_parameters = "33.4 M"
    license = "MIT"
    target_modules: ClassVar[list[str]] = [
        *("to_query", "to_key", "to_value"),
        *("self_attention.out_layer", "cross_attention.out_layer"),
    ]
    sequence_keys = ("prompt_embeds_qwen",)
    latents = LatentSpec(patch_size=2, vae_overrides=NO_SHIFT)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, pooled, _ = pipe.encode_prompt(captions, device=pipe.text_encoder.device)
        mask = embeds.new_ones(embeds.shape[:2], dtype=bool)
        return {"prompt_embeds_qwen": embeds, "prompt_embeds_clip": pooled, TEXT_MASK: mask}

    def _predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, sizes = (
            cond["prompt_embeds_qwen"],
            (1, noisy_latents.shape[2] // 2, noisy_latents.shape[3] // 2),
        )
        prediction: torch.Tensor = denoiser(
            hidden_states=self._pack_latents(noisy_latents),
            encoder_hidden_states=text,
            pooled_projections=cond["prompt_embeds_clip"],
            timestep=timesteps,  # embedded in float32, whatever the dtype of the rest
            visual_rope_pos=[torch.arange(size, device=noisy_latents.device) for size in sizes],
            text_rope_pos=torch.arange(text.shape[1], device=noisy_latents.device),
            return_dict=False,
        )
        return prediction[:, 0].permute(0, 3, 1, 2)

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Sample the requested size, not the nearest of the pipeline's seven."""
        resolutions, pipe.resolutions = pipe.resolutions, [(settings["width"], settings["height"])]
        try:
            return super()._call_pipeline(pipe, cond, negative_cond, settings)
        finally:
            pipe.resolutions = resolutions

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.permute(0, 2, 3, 1)[:, None]  # (B, 1, H, W, C)

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        import torch

        ends = cond[TEXT_MASK].sum(1).cumsum(0)
        starts_and_ends = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        return super()._text_arguments(pipe, cond) | {"prompt_cu_seqlens": starts_and_ends}
