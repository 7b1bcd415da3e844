"""Flux.3: a transformer with streams of its own for text and picture, published as modular blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families.by_length import TEXT_MASK, UnpaddedTextFamily
from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import pack_latents, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Flux3(UnpaddedTextFamily):
    """Black Forest Labs 2026, https://bfl.ai/models/flux-3-image-klein. The base, not its distillation, which
    jumps between times. It expects long captions: the published chain has a language model write them."""

    name = "flux3"
    title = "Flux.3 klein base"
    pipelines = ("Flux3ModularPipeline",)
    rank16 = "16.9 M"
    licence = "FLUX Kommunity (non-commercial; pictures may be sold by small firms)"
    own_shift = True
    left_out = ("prompt_upsampler", "prompt_upsampler_processor")

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

        embeds = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
            pipe.text_encoder,
            pipe.tokenizer,
            captions[0],
            max_sequence_length=max_sequence_length(pipe, 8192),
        )  # (1, L, D); L a multiple of 80, and what fills it up is read as text
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        from diffusers.modular_pipelines.flux3 import before_denoise

        text, (height, width) = cond["prompt_embeds"], noisy.shape[2:]
        prediction = denoiser(
            hidden_states=pack_latents(noisy, 1),
            timestep=(t / 1000).to(noisy.dtype),
            encoder_hidden_states=text,
            img_ids=before_denoise._prepare_image_ids(height, width, 0.5).to(noisy.device),
            txt_ids=before_denoise.Flux3TextRoPEInputsStep._prepare_text_ids(text).to(noisy.device),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width, 1)

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        if options["guidance"] is None:
            options["guidance"] = pipe.guider.guidance_scale
        return super().sample(pipe, cond, negative, noise, **options)

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Run the published blocks behind the text encoder, with a guider of this scale."""
        from diffusers import ClassifierFreeGuidance, Flux3AutoBlocks

        blocks = Flux3AutoBlocks()
        for done in ("prompt_upsampler", "text_encoder"):
            blocks.sub_blocks.pop(done)
        painter, scale = blocks.init_pipeline(), settings["guidance_scale"]
        for name in ("transformer", "vae", "scheduler", "image_processor"):
            setattr(painter, name, getattr(pipe, name))
        painter.guider = ClassifierFreeGuidance(guidance_scale=scale, enabled=scale > self.unguided)
        painter.set_progress_bar_config(disable=True)
        texts = {"prompt_embeds": cond["prompt_embeds"]}
        if negative is not None:
            texts["negative_prompt_embeds"] = negative["prompt_embeds"]
        options = {name: value for name, value in settings.items() if name != "guidance_scale"}
        images: list[Image.Image] = painter(**texts, **options, output="images")
        return images

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        return scale > self.unguided
