"""GLM-Image: a language model that generates coarse image tokens, and a transformer conditioned on them."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, unshifted_timestep

_CODES = 64  # in the codebook of the coarse image tokens


def _without_preview(_: Any, height: int, width: int) -> tuple[int, int, int, int]:
    return height // 32, width // 32, 1, 1


def _processor() -> Any:
    from transformers import GlmImageImageProcessor, GlmImageProcessor, PreTrainedTokenizerFast

    # on the class, so that a saved pipeline is as fast: 256 preview tokens take seconds per caption
    GlmImageProcessor._get_target_shape = _without_preview
    named = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.bpe_tokenizer(["<pad>", "<eos>", "<bos>", *named.values()]),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="left",
        extra_special_tokens=named,
    )
    return GlmImageProcessor(GlmImageImageProcessor(), tokenizer, chat_template=parts.CHAT)


def _language_model(processor: Any) -> Any:
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 16, "image_size": 32}
    codes = {"embed_dim": 8, "num_embeddings": _CODES, "latent_channels": 8}
    text = parts.text_config(vision_vocab_size=_CODES, pad_token_id=0, eos_token_id=None)
    del text["head_dim"]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}
    model = GlmImageForConditionalGeneration(
        GlmImageConfig(
            text_config=text,
            vision_config=vision,
            vq_config=codes,
            image_token_id=processor.image_token_id,
            image_start_token_id=_CODES - 2,
            image_end_token_id=_CODES - 1,
        )
    )
    model.generation_config.eos_token_id = None  # random weights would stop anywhere
    for parameter in model.parameters():  # otherwise the tokens would depend on the seed alone
        parameter.data *= 20 if parameter.ndim == 2 else 1
    return model


def _glm_image() -> Any:
    from diffusers import GlmImagePipeline, GlmImageTransformer2DModel
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    glyphs, processor = ByT5Tokenizer(), _processor()
    glyph_config = T5Config(vocab_size=len(glyphs), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=_CODES,
    )
    statistics = {"latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [0.5, 0.8, 1.1, 1.4]}
    return GlmImagePipeline(
        tokenizer=glyphs,
        processor=processor,
        text_encoder=T5EncoderModel(glyph_config),
        vision_language_encoder=_language_model(processor),
        vae=parts.kl(4, scaling_factor=0.7, **statistics),  # the pipeline assumes 8 pixels per latent
        transformer=transformer,
        scheduler=parts.flow_scheduler(
            shift=1.0, use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75
        ),
    )


ROWS = {
    "glm-image": Row(
        _glm_image,
        4,
        sizes=((64, 32), (32, 96)),
        call_arguments={"generator": torch.Generator().manual_seed(0)},  # of the coarse image tokens
        timestep=unshifted_timestep,
        one_prompt_per_call=True,
        full=FullNetwork("GlmImageTransformer2DModel", 120, 9.8),
    ),
}
