"""Qwen-Image 2.1: one stream of text and picture, and an autoencoder that knows transparency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.by_length import TEXT_MASK, UnpaddedTextFamily
from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import pack_latents, unpack_latents

if TYPE_CHECKING:
    import torch


class QwenImage21(UnpaddedTextFamily):
    """Qwen team 2026. The network reads where the text ends from the first row of a batch."""

    name = "qwen-image-2.1"
    title = "Qwen-Image 2.1"
    pipelines = ("QwenImage21Pipeline",)
    rank16 = "16.8 M"
    licence = "Qwen Research (non-commercial)"
    guidance = "true_cfg_scale"
    always = ("processor",)
    patch = 2  # a token is one latent, but four of them make a slot in the sequence

    @property
    def token_side(self) -> int:
        """The shift counts latents."""
        return 1

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds = pipe.encode_prompt(captions, device=pipe.text_encoder.device)[0]
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, (height, width) = cond["prompt_embeds"], noisy.shape[2:]
        slots = torch.arange(text.shape[1] + height * width // 4, device=noisy.device) >= text.shape[1]
        prediction = denoiser(
            hidden_states=pack_latents(noisy, 1),
            timestep=t.to(noisy.dtype) / 1000,
            encoder_hidden_states=text,
            img_shapes=[[(1, height, width)]] * len(noisy),
            img_mask=slots.expand(len(noisy), -1),
            return_dict=False,
        )[0]
        return unpack_latents(prediction[:, -height * width :], height, width, 1)

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise, 1)
