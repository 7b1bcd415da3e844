"""Wan 2.1, 2.2 with two experts, 2.2's small model whose tokens have a timestep each, and image to video."""

from __future__ import annotations

import functools
from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, sample_still, to_pil_images


def _vae(levels: int, **changes: Any) -> Any:
    """Build a video VAE that halves the sides `levels` - 1 times, and the length twice at most."""
    from diffusers import AutoencoderKLWan

    settings: dict[str, Any] = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1] * levels,
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True][-(levels - 1) :],
        "latents_mean": [0.1, -0.2, 0.3, -0.4],
        "latents_std": [0.5, 0.8, 1.1, 1.4],
    }
    return AutoencoderKLWan(**settings | changes)


def _transformer(**changes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    settings: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**settings | changes)


def _umt5() -> tuple[Any, Any]:
    """Build the text encoder, with position weights in every layer, and its tokenizer."""
    from transformers import UMT5Config, UMT5EncoderModel

    _, tokenizer = parts.t5()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config), tokenizer


def _wan(experts: int = 1, **settings: Any) -> Any:
    from diffusers import WanPipeline

    encoder, tokenizer = _umt5()
    small = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8}
    vae = _vae(3, **small) if settings.get("expand_timesteps") else _vae(4, scale_factor_spatial=8)
    vae.register_to_config(scale_factor_temporal=4)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        scheduler=parts.flow_scheduler(),
        transformer=_transformer(),
        transformer_2=_transformer() if experts == 2 else None,
        **settings,
    )
    return parts.with_text_length(pipe, 32)


def _image_to_video(experts: int = 1, **settings: Any) -> Any:
    """Build 2.1, which has an image encoder, or both experts of 2.2, which has none."""
    from diffusers import WanImageToVideoPipeline

    encoder, tokenizer = _umt5()
    vae = _vae(4, scale_factor_spatial=8)
    vae.register_to_config(scale_factor_temporal=4)
    channels = {"in_channels": 4 + 4 + 4}  # noise, mask, first frame
    parts_by_name = {"transformer": _transformer(**channels), "transformer_2": _transformer(**channels)}
    if experts == 1:
        image_encoder, image_processor = _clip_vision()
        widths = {"image_dim": image_encoder.config.hidden_size, "added_kv_proj_dim": 32}
        parts_by_name = {
            "transformer": _transformer(**channels, **widths),
            "image_encoder": image_encoder,
            "image_processor": image_processor,
        }
    pipe = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        scheduler=parts.flow_scheduler(),
        **parts_by_name,
        **settings,
    )
    return pipe if experts == 1 else parts.with_text_length(pipe, 32)


def _clip_vision() -> tuple[Any, Any]:
    """Build CLIP's image encoder for 16 x 16 pixels, 5 tokens, and its processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPVisionModel(config), processor


def _first_frame(images: dict[str, Any]) -> dict[str, Any]:
    return {"image": to_pil_images(images["source"])[0]}


_CALL = {"num_frames": 1, "max_sequence_length": 32}
_STILL = {"num_frames": 1}
_PUBLISHED = {"in_channels": 36}
_PUBLISHED_21 = _PUBLISHED | {"image_dim": 1280, "added_kv_proj_dim": 5120}
_PROJECTIONS = 2 * 2 * 4  # blocks x (self and cross attention) x projections
ROWS = {
    "wan": Row(
        _wan,
        _PROJECTIONS,
        sizes=((64, 32), (32, 48)),
        call_arguments=_CALL,
        sample=sample_still,
        full=FullNetwork("WanTransformer3DModel", 320, 52.4),
    ),
    "wan-2.2": Row(
        functools.partial(_wan, 2, boundary_ratio=0.5),
        2 * _PROJECTIONS,
        sizes=((64, 32), (32, 48)),
        call_arguments=_CALL,
        sample=sample_still,
    ),
    "wan-2.2-small": Row(
        functools.partial(_wan, expand_timesteps=True),
        _PROJECTIONS,
        sizes=((64, 32), (32, 48)),
        call_arguments=_CALL,
        sample=sample_still,
    ),
    # the network with an image encoder takes texts of 512 tokens only
    "wan-i2v": Row(
        _image_to_video,
        _PROJECTIONS + 2 * 2,
        sizes=((64, 32), (32, 48)),
        call_arguments=_STILL,
        image_arguments=_first_frame,
        sample=sample_still,
        full=FullNetwork("WanTransformer3DModel", 400, 65.5, _PUBLISHED_21),
    ),
    "wan-i2v-2.2": Row(
        functools.partial(_image_to_video, 2, boundary_ratio=0.5),
        2 * _PROJECTIONS,
        sizes=((64, 32), (32, 48)),
        call_arguments=_CALL,
        image_arguments=_first_frame,
        sample=sample_still,
    ),
}
