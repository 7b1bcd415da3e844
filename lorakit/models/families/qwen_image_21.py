"""Qwen-Image 2.1: one stream of text and image, and a VAE with an alpha channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import pack_latents, unpack_latents
from lorakit.models.families.specs import CallSpec, ComponentSpec, LatentSpec
from lorakit.models.families.unpadded import TEXT_MASK, UnpaddedTextFamily

if TYPE_CHECKING:
    import torch


class QwenImage21(UnpaddedTextFamily):
    """Qwen team 2026. The network reads the text length from the first row of a batch."""

    name = "qwen-image-2.1"
    title = "Qwen-Image 2.1"
    pipelines = ("QwenImage21Pipeline",)
    rank16_parameters = "16.8 M"
    license = "Qwen Research (non-commercial)"
    components = ComponentSpec(always_loaded=("processor",))
    call = CallSpec(guidance_argument="true_cfg_scale")
    # a token is one latent, but four of them share a slot in the sequence
    latents = LatentSpec(patch_size=2)

    @property
    def shift_patch_size(self) -> int:
        return 1  # the shift counts latents

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds = pipe.encode_prompt(captions, device=pipe.text_encoder.device)[0]
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, (height, width) = cond["prompt_embeds"], noisy_latents.shape[2:]
        slots = (
            torch.arange(text.shape[1] + height * width // 4, device=noisy_latents.device) >= text.shape[1]
        )
        prediction = denoiser(
            hidden_states=pack_latents(noisy_latents, 1),
            timestep=timesteps.to(noisy_latents.dtype) / 1000,
            encoder_hidden_states=text,
            img_shapes=[[(1, height, width)]] * len(noisy_latents),
            img_mask=slots.expand(len(noisy_latents), -1),
            return_dict=False,
        )[0]
        return unpack_latents(prediction[:, -height * width :], height, width, 1)

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise, 1)
