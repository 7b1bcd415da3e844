"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import functools
from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row


def _sd3(t5: bool = True, dual: tuple[int, ...] = ()) -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = parts.clip_tokenizer()
    encoder, encoder_tokenizer = parts.t5() if t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
        dual_attention_layers=dual,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=parts.flow_scheduler(),
        vae=parts.kl(
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=parts.clip_text(tokenizer, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=parts.clip_text(tokenizer, projection=True),
        tokenizer_2=tokenizer,
        text_encoder_3=encoder,
        tokenizer_3=encoder_tokenizer,
    )


# the last block discards its text: it has no text output, and its text query is unused
_LAST_TEXT = r"transformer_blocks\.1\.attn\.add_q_proj"
_CLASS = "SD3Transformer2DModel"
_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
_LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
ROWS = {
    "sd3": Row(_sd3, 8 + 7, no_gradient=_LAST_TEXT, full=FullNetwork(_CLASS, 191, 9.4, _MEDIUM)),
    "sd3-no-t5": Row(functools.partial(_sd3, t5=False), 8 + 7, no_gradient=_LAST_TEXT),
    # one dual block: a second attention over the image
    "sd35": Row(
        functools.partial(_sd3, t5=False, dual=(0,)),
        8 + 7 + 4,
        no_gradient=_LAST_TEXT,
        full=FullNetwork(_CLASS, 303, 23.6, _LARGE),
    ),
}
