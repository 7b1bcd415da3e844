"""Flux.3: a transformer with separate streams for text and image, published as modular blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.modular import ModularFamily
from lorakit.models.families.packing import pack_latents, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import ComponentSpec, LatentSpec
from lorakit.models.families.unpadded import TEXT_MASK, UnpaddedTextFamily

if TYPE_CHECKING:
    import torch


class Flux3(UnpaddedTextFamily, ModularFamily):
    """Black Forest Labs 2026, https://bfl.ai/models/flux-3-image-klein. The base, not the distilled model.
    It expects long captions: the published pipeline has a language model write them."""

    name = "flux3"
    title = "Flux.3 klein base"
    pipelines = ("Flux3ModularPipeline",)
    rank16_parameters = "16.9 M"
    license = "FLUX Kommunity (non-commercial; images may be sold by small firms)"
    components = ComponentSpec(optional=("prompt_upsampler", "prompt_upsampler_processor"))
    latents = LatentSpec(scheduler_shift=False)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

        embeds = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
            pipe.text_encoder,
            pipe.tokenizer,
            captions[0],
            max_sequence_length=max_sequence_length(pipe, 8192),
        )  # (1, L, D); L is a multiple of 80, and the padding counts as text
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        from diffusers.modular_pipelines.flux3 import before_denoise

        text, (height, width) = cond["prompt_embeds"], noisy_latents.shape[2:]
        prediction = denoiser(
            hidden_states=pack_latents(noisy_latents, 1),
            timestep=(timesteps / 1000).to(noisy_latents.dtype),
            encoder_hidden_states=text,
            img_ids=before_denoise._prepare_image_ids(height, width, 0.5).to(noisy_latents.device),
            txt_ids=before_denoise.Flux3TextRoPEInputsStep._prepare_text_ids(text).to(noisy_latents.device),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width, 1)

    def _sampling_blocks(self) -> Any:
        from diffusers import Flux3AutoBlocks

        blocks = Flux3AutoBlocks()
        for name in ("prompt_upsampler", "text_encoder"):
            blocks.sub_blocks.pop(name)
        return blocks
