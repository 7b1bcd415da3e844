"""Qwen-Image, Qwen-Image 2.1 and Krea 2, which share a VAE or a text encoder."""

from __future__ import annotations

import functools
from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, from_packed, packed, to_pil_images

_GUIDANCE = {
    "guidance_off": {"true_cfg_scale": 1.0},
    "guidance_on": {"true_cfg_scale": 4.0, "negative_prompt": ""},
}


def qwen_vae(class_name: str = "AutoencoderKLQwenImage", levels: int = 3, **changes: Any) -> Any:
    """Build a video VAE, used for images, that halves them `levels` - 1 times."""
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
    return getattr(diffusers, class_name)(**settings | changes)


def _qwen_image(pipeline: str = "QwenImagePipeline") -> Any:
    import diffusers
    from diffusers import QwenImageTransformer2DModel
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    edit_components: dict[str, Any] = {}
    if pipeline != "QwenImagePipeline":
        small = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112})
        edit_components["processor"] = Qwen2VLProcessor(
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
    return getattr(diffusers, pipeline)(
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=parts.qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
        **edit_components,
    )


def _edit(pipeline: str) -> Row:
    return Row(
        functools.partial(_qwen_image, pipeline),
        8 * 2,
        no_gradient=r"transformer_blocks\.1\.attn\.(to_add_out|add_q_proj)",
        initial_noise=lambda pipe, noise: noise[:, None],
        latents_argument=packed,
        unpack_prediction=from_packed,
        image_arguments=lambda images: {"image": to_pil_images(images["source"])},
        **_GUIDANCE,
        full=FullNetwork("QwenImageTransformer2DModel", 480, 47.2),
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
        # the pipeline assumes 16 pixels per latent
        vae=qwen_vae("AutoencoderKLQwenImage21", levels=5, decoder_base_dim=4, scale_factor_spatial=16),
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
        vae=qwen_vae(),
        text_encoder=parts.qwen3_vl(tokenizer, head=False, num_hidden_layers=2),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=(1, 2),
    )
    return parts.with_text_length(pipe, 64)


ROWS = {
    # the text output of the last block is discarded
    "qwen-image": Row(
        _qwen_image,
        8 * 2,
        no_gradient=r"transformer_blocks\.1\.attn\.(to_add_out|add_q_proj)",
        initial_noise=lambda pipe, noise: noise[:, None],
        latents_argument=packed,
        unpack_prediction=from_packed,
        **_GUIDANCE,
        full=FullNetwork("QwenImageTransformer2DModel", 480, 47.2),
    ),
    "qwen-image-edit": _edit("QwenImageEditPipeline"),
    "qwen-image-edit-plus": _edit("QwenImageEditPlusPipeline"),
    "qwen-image-2.1": Row(
        _qwen_image_21,
        4 * 2,
        sizes=((64, 32), (32, 96)),
        initial_noise=lambda pipe, noise: noise[:, None],
        latents_argument=lambda pipe, noise: noise.flatten(2).transpose(1, 2),
        unpack_prediction=lambda pipe, output, noise: output.transpose(1, 2).reshape(noise.shape),
        one_prompt_per_call=True,
        **_GUIDANCE,
        full=FullNetwork("QwenImage21Transformer2DModel", 128, 16.8),
    ),
    "krea2": Row(
        _krea2,
        5 * (1 + 1 + 1),  # with the gates; a layerwise and a refiner block for text, one block for both
        latents_argument=packed,
        unpack_prediction=from_packed,
        guidance_off={"guidance_scale": 0.0},
        call_arguments={"max_sequence_length": 64},
        unsaved_attributes=("prompt_template_encode_start_idx", "prompt_template_encode_num_suffix_tokens"),
        full=FullNetwork("Krea2Transformer2DModel", 160, 25.0),
    ),
}
