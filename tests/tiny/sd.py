"""Stable Diffusion 1.x, 2.x and XL, Kolors."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, inpainting_arguments


def _sd15(prediction: str = "epsilon", pipeline: str = "StableDiffusionPipeline", channels: int = 4) -> Any:
    import diffusers
    from diffusers import DDIMScheduler, UNet2DConditionModel

    tokenizer = parts.clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    # zero-terminal SNR needs v: the last step is pure noise, where epsilon contains no information
    terminal = (
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if prediction != "epsilon" else {}
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **terminal,
    )
    return getattr(diffusers, pipeline)(
        vae=parts.kl(),
        text_encoder=parts.clip_text(tokenizer, projection=False),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet_xl(text: int, pooled: int, channels: int = 4) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=text,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + pooled,
        norm_num_groups=4,
    )


def _euler(**settings: Any) -> Any:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **settings
    )


def _sdxl(pipeline: str = "StableDiffusionXLPipeline", channels: int = 4, **vae: Any) -> Any:
    import diffusers

    tokenizer = parts.clip_tokenizer()
    return getattr(diffusers, pipeline)(
        vae=parts.kl(4, scaling_factor=0.13025, **vae),
        text_encoder=parts.clip_text(tokenizer, projection=False),
        text_encoder_2=parts.clip_text(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet_xl(32, 16, channels),
        scheduler=_euler(),
        add_watermarker=False,
    )


def _chatglm_tokenizer() -> Any:
    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([parts.WORDS] * 4),
        model_writer=model,
        vocab_size=120,
        model_type="bpe",
        minloglevel=2,
    )
    folder = Path(tempfile.mkdtemp(dir=parts.SCRATCH.name))
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return ChatGLMTokenizer(str(folder / "tokenizer.model"))


def _kolors() -> Any:
    from diffusers import KolorsPipeline
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    tokenizer = _chatglm_tokenizer()
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        ffn_hidden_size=16,
        kv_channels=8,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
    )
    encoder = ChatGLMModel(config)
    for parameter in encoder.parameters():  # the class does not initialize its memory
        torch.nn.init.normal_(parameter, std=0.2)
    return KolorsPipeline(
        vae=parts.kl(4, scaling_factor=0.13025),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=_unet_xl(16, 16),
        scheduler=_euler(num_train_timesteps=1100),
    )


_MODULES = 4 * 2 * 4  # (1 down + 1 mid + 2 up) blocks x 2 attentions x 4
_XL_MODULES = 4 * 2 * 2 * 4  # each of them with two layers
_XL_SIZES = ((64, 32), (32, 48))  # 8 pixels per latent, and the U-Net halves once
_UNET = "UNet2DConditionModel"
_SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
_KOLORS = {"projection_class_embeddings_input_dim": 5632, "encoder_hid_dim": 4096}
_KOLORS |= {"encoder_hid_dim_type": "text_proj"}
ROWS = {
    "sd15": Row(_sd15, _MODULES, full=FullNetwork(_UNET, 128, 3.2, {"cross_attention_dim": 768})),
    "sd15-v": Row(
        functools.partial(_sd15, "v_prediction"), _MODULES, full=FullNetwork(_UNET, 128, 3.3, _SD2)
    ),
    "sdxl": Row(_sdxl, _XL_MODULES, sizes=_XL_SIZES, full=FullNetwork(_UNET, 560, 23.2, _XL)),
    # as in descendants of SDXL whose VAE has statistics
    "sdxl-means": Row(
        functools.partial(_sdxl, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 0.9]),
        _XL_MODULES,
        sizes=_XL_SIZES,
    ),
    "sd15-inpaint": Row(
        functools.partial(_sd15, pipeline="StableDiffusionInpaintPipeline", channels=9),
        _MODULES,
        image_arguments=inpainting_arguments,
        full=FullNetwork(_UNET, 128, 3.2, {"in_channels": 9, "cross_attention_dim": 768}),
    ),
    "sdxl-inpaint": Row(
        functools.partial(_sdxl, "StableDiffusionXLInpaintPipeline", 9),
        _XL_MODULES,
        sizes=_XL_SIZES,
        image_arguments=inpainting_arguments,
        full=FullNetwork(_UNET, 560, 23.2, _XL | {"in_channels": 9}),
    ),
    "kolors": Row(_kolors, _XL_MODULES, sizes=_XL_SIZES, full=FullNetwork(_UNET, 560, 23.2, _XL | _KOLORS)),
}
