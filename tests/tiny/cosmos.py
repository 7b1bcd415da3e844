"""Anima, which shares the network of Cosmos-Predict2 and is a chain of blocks instead of a usual pipeline."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from tests.tiny import parts
from tests.tiny.qwen import qwen_vae
from tests.tiny.row import FullNetwork, Row, Tensor

LENGTH = 64  # of the text, which Anima pads


def _transformer(text_width: int) -> Any:
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=text_width,
        adaln_lora_dim=4,
        max_size=(4, 64, 64),
        rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    )


def _anima() -> Any:
    from diffusers import AnimaModularPipeline, AnimaTextConditioner
    from transformers import Qwen3Config, Qwen3Model

    tokenizer, t5_tokenizer = parts.qwen_tokenizer(), parts.t5_tokenizer()
    pipe = AnimaModularPipeline()
    pipe.update_components(
        text_encoder=Qwen3Model(Qwen3Config(**parts.text_config(bos_token_id=None, eos_token_id=None))),
        tokenizer=tokenizer,
        t5_tokenizer=t5_tokenizer,
        text_conditioner=AnimaTextConditioner(
            source_dim=8,
            target_dim=16,
            model_dim=16,
            num_layers=1,
            num_attention_heads=2,
            target_vocab_size=len(t5_tokenizer),
            min_sequence_length=LENGTH,
        ),
        vae=qwen_vae(),
        transformer=_transformer(16),
        scheduler=parts.flow_scheduler(),
    )
    return pipe


def _published(pipe: Any, guidance_scale: float) -> Any:
    """Return the published blocks with a guider of this scale."""
    from diffusers import AnimaAutoBlocks, ClassifierFreeGuidance

    chain = AnimaAutoBlocks().init_pipeline()
    names = ("vae", "text_encoder", "tokenizer", "t5_tokenizer", "text_conditioner", "transformer")
    chain.update_components(
        **{name: getattr(pipe, name) for name in names},
        guider=ClassifierFreeGuidance(guidance_scale=guidance_scale),
    )
    chain.scheduler = pipe.scheduler
    chain.set_progress_bar_config(disable=True)
    return chain


def _sample(pipe: Any, *, prompt: list[str], guidance_scale: float, **settings: Any) -> Any:
    return _published(pipe, guidance_scale)(prompt=prompt, output="images", **settings)


def _predict(pipe: Any, caption: str, noise: Tensor, t: Tensor, width: int, height: int) -> Tensor:
    from diffusers.modular_pipelines.anima import before_denoise

    from tests.oracle import Caught, OneStep

    chain = _published(pipe, 1.0)
    chain.scheduler = OneStep(pipe.scheduler, t, stop=True)
    fixed_noise = mock.patch.object(before_denoise, "randn_tensor", return_value=noise[:, :, None])
    with fixed_noise, pytest.raises(Caught) as caught:
        chain(prompt=caption, width=width, height=height, num_inference_steps=1)
    output: Tensor = caught.value.args[0]
    return output[:, :, 0]


_PROJECTIONS = 2 * 2 * 4  # blocks x (self and cross attention) x projections
_PUBLISHED = {"num_attention_heads": 16, "extra_pos_embed_type": None, "rope_scale": (1.0, 4.0, 4.0)}
ROWS = {
    "anima": Row(
        _anima,
        _PROJECTIONS,
        latents_argument=lambda pipe, noise: noise[:, :, None],
        sample=_sample,
        predict=_predict,
        full=FullNetwork("CosmosTransformer3DModel", 224, 13.8, _PUBLISHED),
    ),
}
