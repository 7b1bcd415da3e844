"""LTX-Video, HunyuanVideo, HunyuanVideo 1.5 and CogVideoX."""

from __future__ import annotations

import functools
from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, sample_still


def _ltx(*, timestep_conditioning: bool = False) -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
        timestep_conditioning=timestep_conditioning,
        scaling_factor=0.8,
    )
    vae.latents_mean.normal_(std=0.3)
    vae.latents_std.uniform_(0.5, 2.0)
    encoder, tokenizer = parts.t5()
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    pipe = LTXPipeline(
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return parts.with_text_length(pipe, 32)


def _hunyuan_video() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        spatial_compression_ratio=4,
        mid_block_add_attention=False,
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=parts.bpe_tokenizer(["<pad>", "<bos>", "<eos>"]), pad_token="<pad>"
    )
    clip = parts.clip_tokenizer()
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=8,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 2, 4),
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=LlamaModel(LlamaConfig(**parts.text_config(num_hidden_layers=3))),
        tokenizer=words,
        transformer=transformer,
        vae=vae,
        scheduler=parts.flow_scheduler(shift=7.0),
        text_encoder_2=parts.clip_text(clip, projection=False),
        tokenizer_2=clip,
    )
    return parts.with_text_length(pipe, 400)  # the template is long in this small vocabulary


def _hunyuan_video_15() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from transformers import (
        ByT5Tokenizer,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLTextModel,
        T5Config,
        T5EncoderModel,
    )

    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 16, 16), layers_per_block=1, spatial_compression_ratio=4
    )
    tokenizer, glyphs = parts.qwen_tokenizer(*parts.VISION_TOKENS), ByT5Tokenizer()
    glyph_config = T5Config(vocab_size=len(glyphs), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    settings = parts.text_config(
        num_hidden_layers=3, rope_parameters=parts.mrope([1, 1, 0]), bos_token_id=None, eos_token_id=None
    )
    del settings["head_dim"]
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=8,
        text_embed_2_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        task_type="t2v",
    )
    pipe = HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**settings)),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=parts.flow_scheduler(shift=7.0),
        text_encoder_2=T5EncoderModel(glyph_config),
        tokenizer_2=glyphs,
        guider=ClassifierFreeGuidance(enabled=False),
    )
    pipe.vae.enable_slicing()  # as the family does: it confuses the masks of a batch
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 300, 16  # instead of 1000 and 256
    return pipe


def _cogvideox(*, rotary: bool) -> Any:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    encoder, tokenizer = parts.t5()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=32,
        use_rotary_positional_embeddings=rotary,
    )
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
    )
    return parts.with_text_length(pipe, 32)


_STILL: dict[str, Any] = {"num_frames": 1}
_SHORT = _STILL | {"max_sequence_length": 32}


def _tokens(pipe: Any, noise: Any) -> Any:
    return noise.flatten(2).transpose(1, 2)


def _from_tokens(pipe: Any, output: Any, noise: Any) -> Any:
    return output.transpose(1, 2).reshape(noise.shape)


def _frames_first(pipe: Any, noise: Any) -> Any:
    return noise.transpose(1, 2)


_LTX: dict[str, Any] = {
    "sizes": ((64, 32), (32, 64)),
    "latents_argument": _tokens,
    "unpack_prediction": _from_tokens,
    "call_arguments": _SHORT,
    "sample": sample_still,
}
_COG: dict[str, Any] = {
    "initial_noise": _frames_first,
    "latents_argument": _frames_first,
    "unpack_prediction": lambda pipe, output, noise: output.transpose(1, 2),
    "call_arguments": _SHORT,
    "sample": sample_still,
}
ROWS = {
    "ltx": Row(_ltx, 2 * 2 * 4, **_LTX, full=FullNetwork("LTXVideoTransformer3DModel", 224, 14.7)),
    "ltx-0.9.5": Row(functools.partial(_ltx, timestep_conditioning=True), 2 * 2 * 4, **_LTX),
    # 8 in the double block, 4 in the text block, 3 in the single block, whose output layer is the MLP's too
    "hunyuan-video": Row(
        _hunyuan_video,
        8 + 3 + 4,
        call_arguments=_STILL | {"max_sequence_length": 400},
        sample=sample_still,
        full=FullNetwork("HunyuanVideoTransformer3DModel", 288, 28.3),
    ),
    # the text output of the last block is discarded
    "hunyuan-video-1.5": Row(
        _hunyuan_video_15,
        2 * 8 + 4,
        no_gradient=r"transformer_blocks\.1\.attn\.(to_add_out|add_q_proj)",
        call_arguments=_STILL,
        sample=sample_still,
        guidance_off={},
        guidance_on=None,
        full=FullNetwork("HunyuanVideo15Transformer3DModel", 440, 28.8),
    ),
    "cogvideox": Row(functools.partial(_cogvideox, rotary=True), 2 * 4, **_COG),
    "cogvideox-2b": Row(
        functools.partial(_cogvideox, rotary=False),
        2 * 4,
        **_COG,
        full=FullNetwork("CogVideoXTransformer3DModel", 120, 7.4),
    ),
}
