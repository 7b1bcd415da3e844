"""Ideogram 4."""

from __future__ import annotations

from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row


def _ideogram4() -> Any:
    from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)

    def transformer() -> Any:
        return Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=13 * 8,
            mrope_section=(4, 2, 2),
        )

    pipe = Ideogram4Pipeline(
        scheduler=parts.flow_scheduler(shift=1.0),
        vae=parts.kl_flux2(),
        # the pipeline reads thirteen layers, the last of which is the 35th
        text_encoder=parts.qwen3_vl(tokenizer, head=False, num_hidden_layers=36),
        tokenizer=tokenizer,
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )
    return parts.with_text_length(pipe, 32)


ROWS = {
    "ideogram4": Row(
        _ideogram4,
        4,
        call_arguments={"max_sequence_length": 32, "guidance_schedule": None},
        initial_noise=lambda pipe, noise: noise.flatten(2).transpose(1, 2),
        latents_argument=lambda pipe, noise: noise.flatten(2).transpose(1, 2),
        unpack_prediction=lambda pipe, output, noise: output.transpose(1, 2).reshape(noise.shape),
        attention_layers=r"\.attention\.",
        full=FullNetwork("Ideogram4Transformer2DModel", 136, 20.1),
    ),
}
