"""Kandinsky 5 text to image: a transformer over films of one frame, with channels last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.by_length import TEXT_MASK, UnpaddedTextFamily
from lorakit.models.families.family import NO_SHIFT, Conditioning

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Kandinsky5(UnpaddedTextFamily):
    """Kandinsky Lab 2025, https://arxiv.org/abs/2511.14993. The text has no mask."""

    name = "kandinsky5"
    title = "Kandinsky 5 Image"
    pipelines = ("Kandinsky5T2IPipeline",)
    rank16 = "17.3 M"
    licence = "MIT"
    targets: ClassVar[list[str]] = [
        *("to_query", "to_key", "to_value"),
        *("self_attention.out_layer", "cross_attention.out_layer"),
    ]
    texts = ("prompt_embeds_qwen",)
    vae_settings = NO_SHIFT
    patch = 2

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, pooled, _ = pipe.encode_prompt(captions, device=pipe.text_encoder.device)
        mask = embeds.new_ones(embeds.shape[:2], dtype=bool)
        return {"prompt_embeds_qwen": embeds, "prompt_embeds_clip": pooled, TEXT_MASK: mask}

    def _predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, sizes = cond["prompt_embeds_qwen"], (1, noisy.shape[2] // 2, noisy.shape[3] // 2)
        prediction: torch.Tensor = denoiser(
            hidden_states=self._pack(noisy),
            encoder_hidden_states=text,
            pooled_projections=cond["prompt_embeds_clip"],
            timestep=t,  # embedded in float32, whatever the precision of the rest
            visual_rope_pos=[torch.arange(size, device=noisy.device) for size in sizes],
            text_rope_pos=torch.arange(text.shape[1], device=noisy.device),
            return_dict=False,
        )
        return prediction[:, 0].permute(0, 3, 1, 2)

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """The pipeline would draw the nearest of seven sizes instead of the one that was asked for."""
        known, pipe.resolutions = pipe.resolutions, [(settings["width"], settings["height"])]
        try:
            return super()._run(pipe, cond, negative, settings)
        finally:
            pipe.resolutions = known

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.permute(0, 2, 3, 1)[:, None]  # (B, 1, H, W, C)

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        import torch

        ends = cond[TEXT_MASK].sum(1).cumsum(0)
        starts_and_ends = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        return super()._arguments(pipe, cond) | {"prompt_cu_seqlens": starts_and_ends}
