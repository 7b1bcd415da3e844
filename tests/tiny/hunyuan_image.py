"""HunyuanImage 2.1, with guidance by a component instead of an argument."""

from __future__ import annotations

from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row


def _vae() -> Any:
    from diffusers import AutoencoderKLHunyuanImage

    return AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=32,
        scaling_factor=0.75,
    )


def _hunyuan_image() -> Any:
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    glyphs = ByT5Tokenizer()
    glyph_config = T5Config(vocab_size=len(glyphs), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=8,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    pipe = HunyuanImagePipeline(
        scheduler=parts.flow_scheduler(),
        vae=_vae(),
        text_encoder=parts.qwen25_vl(tokenizer, num_hidden_layers=2),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(glyph_config),
        tokenizer_2=glyphs,
        transformer=transformer,
        guider=AdaptiveProjectedMixGuidance(enabled=False),
        ocr_guider=AdaptiveProjectedMixGuidance(enabled=False),
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 80, 16  # instead of 1000 and 128
    return pipe


ROWS = {
    # 8 in the double block, 4 in the text block, 3 in the single block, whose output layer is the MLP's too
    "hunyuan-image": Row(
        _hunyuan_image,
        8 + 3 + 4,
        guidance_off={},
        guidance_on=None,
        full=FullNetwork("HunyuanImageTransformer2DModel", 288, 33.0),
    ),
}
