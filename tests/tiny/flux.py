"""Flux.1 and its descendants: Chroma, LongCat-Image, Bria 3.2."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, Tensor, from_packed, inpainting_arguments, packed, to_pil_images

_LONGCAT_FULL: dict[str, Any] = {"num_layers": 10, "num_single_layers": 20}
_SHAPE: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "axes_dims_rope": (2, 4, 2),
}


def _vae(**changes: Any) -> Any:
    return parts.kl(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, **changes)


def _flux1(guidance: bool, pipeline: str = "FluxPipeline", channels: int = 16) -> Any:
    import diffusers
    from diffusers import FluxTransformer2DModel

    tokenizer = parts.clip_tokenizer()
    t5, t5_tokenizer = parts.t5()
    pipe = getattr(diffusers, pipeline)(
        vae=_vae(),
        text_encoder=parts.clip_text(tokenizer, projection=False),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel(
            **_SHAPE | {"in_channels": channels},
            out_channels=16,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance,
        ),
        scheduler=parts.flow_scheduler(use_dynamic_shifting=guidance, shift=3.0 if guidance else 1.0),
    )
    return parts.with_text_length(pipe, 32)


def _chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    t5, t5_tokenizer = parts.t5()
    pipe = ChromaPipeline(
        vae=_vae(),
        text_encoder=t5,
        tokenizer=t5_tokenizer,
        transformer=ChromaTransformer2DModel(
            **_SHAPE,
            joint_attention_dim=32,
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
    )
    return parts.with_text_length(pipe, 32)


def _longcat(pipeline: str = "LongCatImagePipeline") -> Any:
    import diffusers
    from diffusers import LongCatImageTransformer2DModel
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=parts.CHAT,
    )
    return getattr(diffusers, pipeline)(
        vae=_vae(latent_channels=16),  # the pipeline accepts no other number
        text_encoder=parts.qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=processor,
        transformer=LongCatImageTransformer2DModel(
            **_SHAPE | {"in_channels": 64}, joint_attention_dim=8, pooled_projection_dim=8
        ),
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
    )


def _sample_edit(pipe: Any, **settings: Any) -> Any:
    """Call the edit pipeline, which takes its size from the source."""
    return pipe(**{k: v for k, v in settings.items() if k not in ("width", "height")})[0]


def _bria() -> Any:
    from diffusers import BriaPipeline, BriaTransformer2DModel

    t5, t5_tokenizer = parts.t5()
    return BriaPipeline(
        vae=_vae(),
        text_encoder=t5,
        tokenizer=t5_tokenizer,
        transformer=BriaTransformer2DModel(**_SHAPE, joint_attention_dim=32),
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
    )


def _kontext(images: dict[str, Tensor]) -> dict[str, Any]:
    (source,) = to_pil_images(images["source"])
    return {"image": source, "max_area": source.width * source.height, "_auto_resize": False}


def _controlled(images: dict[str, Tensor]) -> dict[str, Any]:
    return {"control_image": to_pil_images(images["control"])}


def _tool(pipeline: str, channels: int, image_arguments: Any, **config: Any) -> Row:
    return Row(
        functools.partial(_flux1, True, pipeline, channels),
        _MODULES,
        call_arguments={"max_sequence_length": 32},
        image_arguments=image_arguments,
        full=FullNetwork("FluxTransformer2DModel", 266, 26.1, _DEV | config),
        **_PACKED,
    )


_DEV = {"guidance_embeds": True}
_MODULES = 8 + 2 * 3  # one double block, two single ones
_PACKED: dict[str, Any] = {"latents_argument": packed, "unpack_prediction": from_packed}
ROWS = {
    # its guidance is an input of the network, which the published pipeline sets to its guidance scale
    "flux1-dev": Row(
        functools.partial(_flux1, True),
        _MODULES,
        call_arguments={"max_sequence_length": 32},
        full=FullNetwork("FluxTransformer2DModel", 266, 26.1, {"guidance_embeds": True}),
        **_PACKED,
    ),
    "flux1-schnell": Row(
        functools.partial(_flux1, False),
        _MODULES,
        guidance_on=None,
        call_arguments={"max_sequence_length": 32},
        **_PACKED,
    ),
    "flux1-kontext": _tool("FluxKontextPipeline", 16, _kontext),
    # 4 latents per token: noise of 4 channels, masked image of 4, mask of 16 (4 x 4 pixels per latent)
    "flux1-fill": _tool(
        "FluxFillPipeline", 4 * (4 + 4 + 16), inpainting_arguments, in_channels=384, out_channels=64
    ),
    "flux1-control": replace(
        _tool("FluxControlPipeline", 32, _controlled),
        modules=_MODULES + 1,  # with the first layer
        attention_layers=r"\.attn\.|^x_embedder",
        full=FullNetwork(
            "FluxTransformer2DModel", 267, 26.2, {"in_channels": 128, "out_channels": 64} | _DEV
        ),
    ),
    "chroma": Row(
        _chroma,
        _MODULES,
        call_arguments={"max_sequence_length": 32},
        full=FullNetwork("ChromaTransformer2DModel", 266, 26.1),
        **_PACKED,
    ),
    "longcat-image": Row(
        _longcat,
        _MODULES,
        call_arguments={"enable_prompt_rewrite": False},
        guidance_on={
            "guidance_scale": 4.0,
            "negative_prompt": ["", ""],
        },  # its default is a single one, too few for two prompts
        full=FullNetwork("LongCatImageTransformer2DModel", 140, 13.8, _LONGCAT_FULL),
        **_PACKED,
    ),
    "longcat-image-edit": Row(
        functools.partial(_longcat, "LongCatImageEditPipeline"),
        _MODULES,
        sample=_sample_edit,
        image_arguments=lambda images: {"image": to_pil_images(images["source"])[0]},
        guidance_on={"guidance_scale": 4.0, "negative_prompt": ""},
        full=FullNetwork("LongCatImageTransformer2DModel", 140, 13.8, _LONGCAT_FULL),
        **_PACKED,
    ),
    "bria": Row(_bria, _MODULES, full=FullNetwork("BriaTransformer2DModel", 266, 26.1), **_PACKED),
}
