"""Flux.3, which is a chain of blocks instead of a usual pipeline."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, Tensor


def _flux3() -> Any:
    from diffusers import Flux3ModularPipeline, Flux3Transformer2DModel
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    pipe = Flux3ModularPipeline()
    pipe.update_components(
        vae=parts.kl_flux2(),
        text_encoder=parts.qwen3_vl(
            tokenizer, num_hidden_layers=33
        ),  # the pipeline reads no layer after the 32nd
        tokenizer=Qwen3VLProcessor(
            Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=parts.CHAT
        ),
        transformer=Flux3Transformer2DModel(
            in_channels=16,
            cond_in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8 * 8,
            timestep_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        ),
    )
    return pipe


def _published(pipe: Any, guidance_scale: float) -> Any:
    """Return the published blocks without the language model that rewrites prompts."""
    from diffusers import ClassifierFreeGuidance, Flux3AutoBlocks

    blocks = Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    chain = blocks.init_pipeline()
    names = ("vae", "text_encoder", "tokenizer", "transformer")
    chain.update_components(
        **{name: getattr(pipe, name) for name in names},
        guider=ClassifierFreeGuidance(guidance_scale=guidance_scale),
    )
    chain.scheduler = pipe.scheduler
    chain.set_progress_bar_config(disable=True)
    return chain


def _sample(
    pipe: Any,
    *,
    prompt: list[str],
    latents: Tensor,
    generator: Any = None,
    guidance_scale: float,
    **settings: Any,
) -> Any:
    chain = _published(pipe, guidance_scale)
    outputs = [
        chain(prompt=text, latents=row[None], output="images", **settings)
        for text, row in zip(prompt, latents, strict=True)
    ]
    return torch.cat(outputs) if isinstance(outputs[0], Tensor) else [images[0] for images in outputs]


def _predict(pipe: Any, caption: str, noise: Tensor, t: Tensor, width: int, height: int) -> Tensor:
    from diffusers.modular_pipelines.flux3 import before_denoise

    from tests.oracle import Caught, OneStep

    chain = _published(pipe, 1.0)
    chain.scheduler = OneStep(pipe.scheduler, t, stop=True)
    fixed_noise = mock.patch.object(before_denoise, "randn_tensor", return_value=noise)
    with fixed_noise, pytest.raises(Caught) as caught:
        chain(prompt=caption, width=width, height=height, num_inference_steps=1)
    output: Tensor = caught.value.args[0]
    return output.transpose(1, 2).reshape(noise.shape)


ROWS = {
    "flux3": Row(
        _flux3,
        4 * (1 + 1 + 1 + 2),  # text, image, reference images, all together
        no_gradient=r"mode_blocks\.image_cond",  # text to image has no reference images
        sample=_sample,
        predict=_predict,
        full=FullNetwork("Flux3Transformer2DModel", 172, 16.9),
    ),
}
