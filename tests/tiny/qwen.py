"""Qwen-Image, Qwen-Image 2.1 and Krea 2, which share an autoencoder or a text encoder."""

from __future__ import annotations

import functools
from typing import Any

from tests.tiny import parts
from tests.tiny.row import Full, Row, as_pictures, from_packed, packed

_GUIDANCE = {"off": {"true_cfg_scale": 1.0}, "on": {"true_cfg_scale": 4.0, "negative_prompt": ""}}


def _vae(kind: str = "AutoencoderKLQwenImage", levels: int = 3, **changes: Any) -> Any:
    """An autoencoder of films, used for pictures; `levels` - 1 times it halves them."""
    import diffusers

    settings: dict[str, Any] = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1] * levels,
        "num_res_blocks": 1,
        "temperal_downsample": [False] + [True] * (levels - 2),
        "latents_mean": [0.1, -0.2, 0.3, -0.4],
        "latents_std": [0.5, 0.8, 1.1, 1.4],
    }
    return getattr(diffusers, kind)(**settings | changes)


def _qwen_image(kind: str = "QwenImagePipeline") -> Any:
    import diffusers
    from diffusers import QwenImageTransformer2DModel
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    more: dict[str, Any] = {}
    if kind != "QwenImagePipeline":
        small = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112})
        more["processor"] = Qwen2VLProcessor(
            small, tokenizer, Qwen2VLVideoProcessor(), chat_template=parts.CHAT
        )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    return getattr(diffusers, kind)(
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=parts.qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
        **more,
    )


def _edit(kind: str) -> Row:
    return Row(
        functools.partial(_qwen_image, kind),
        8 * 2,
        dead=r"transformer_blocks\.1\.attn\.(to_add_out|add_q_proj)",
        drawn=lambda pipe, noise: noise[:, None],
        given=packed,
        unpacked=from_packed,
        shown=lambda pictures: {"image": as_pictures(pictures["source"])},
        **_GUIDANCE,
        full=Full("QwenImageTransformer2DModel", 480, 47.2),
    )


def _qwen_image_21() -> Any:
    from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=parts.CHAT
    )
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImage21Pipeline(
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
        # the pipeline takes 16 pixels a latent for granted
        vae=_vae("AutoencoderKLQwenImage21", levels=5, decoder_base_dim=4, scale_factor_spatial=16),
        text_encoder=parts.qwen3_vl(tokenizer),
        processor=processor,
        transformer=transformer,
    )


def _krea2() -> Any:
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=8,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = Krea2Pipeline(
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=parts.qwen3_vl(tokenizer, head=False, num_hidden_layers=2),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=(1, 2),
    )
    return parts.with_text_length(pipe, 64)


ROWS = {
    # the text that leaves the last block is thrown away
    "qwen-image": Row(
        _qwen_image,
        8 * 2,
        dead=r"transformer_blocks\.1\.attn\.(to_add_out|add_q_proj)",
        drawn=lambda pipe, noise: noise[:, None],
        given=packed,
        unpacked=from_packed,
        **_GUIDANCE,
        full=Full("QwenImageTransformer2DModel", 480, 47.2),
    ),
    "qwen-image-edit": _edit("QwenImageEditPipeline"),
    "qwen-image-edit-plus": _edit("QwenImageEditPlusPipeline"),
    "qwen-image-2.1": Row(
        _qwen_image_21,
        4 * 2,
        sizes=((64, 32), (32, 96)),
        drawn=lambda pipe, noise: noise[:, None],
        given=lambda pipe, noise: noise.flatten(2).transpose(1, 2),
        unpacked=lambda pipe, output, noise: output.transpose(1, 2).reshape(noise.shape),
        alone=True,
        **_GUIDANCE,
        full=Full("QwenImage21Transformer2DModel", 128, 16.8),
    ),
    "krea2": Row(
        _krea2,
        5 * (1 + 1 + 1),  # with the gates; a layerwise and a refining block of the text, one of both
        given=packed,
        unpacked=from_packed,
        off={"guidance_scale": 0.0},
        call={"max_sequence_length": 64},
        unsaved=("prompt_template_encode_start_idx", "prompt_template_encode_num_suffix_tokens"),
        full=Full("Krea2Transformer2DModel", 160, 25.0),
    ),
}
