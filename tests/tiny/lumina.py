"""Lumina 2 and Z-Image, whose transformers join text and image in one sequence."""

from __future__ import annotations

from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row


def _lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    encoder, tokenizer = parts.gemma2()
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(128, 32, 32),
        cap_feat_dim=8,
    )
    pipe = Lumina2Pipeline(
        transformer=transformer,
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
        # the pipeline assumes 8 pixels per latent
        vae=parts.kl(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    return parts.with_text_length(pipe, 120)


def _z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    pipe = ZImagePipeline(
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
        vae=parts.kl(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Qwen3Model(Qwen3Config(**parts.text_config(num_hidden_layers=2))),
        tokenizer=parts.qwen_tokenizer(),
        transformer=transformer,
    )
    return parts.with_text_length(pipe, 64)


ROWS = {
    "lumina2": Row(
        _lumina2,
        4 * 3,
        sizes=((64, 32), (32, 48)),
        call_arguments={"max_sequence_length": 120},
        full=FullNetwork("Lumina2Transformer2DModel", 120, 7.4),
    ),  # one block each for text, image and both
    "z-image": Row(
        _z_image,
        4 * 3,
        guidance_off={"guidance_scale": 0.0},
        call_arguments={"max_sequence_length": 64},
        attention_layers=r"\.attention\.",
        full=FullNetwork("ZImageTransformer2DModel", 136, 16.7),
    ),
}
