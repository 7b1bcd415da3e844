"""Flux.2 dev and klein."""

from __future__ import annotations

from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, Tensor, to_pil_images


def _common(guidance: bool, joint: int) -> dict[str, Any]:
    from diffusers import Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=joint,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    scheduler = parts.flow_scheduler(use_dynamic_shifting=True)
    return {"vae": parts.kl_flux2(), "transformer": transformer, "scheduler": scheduler}


def _klein() -> Any:
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    # the pipelines read layers 9, 18, 27 (klein) and 10, 20, 30 (dev)
    encoder = Qwen3ForCausalLM(
        Qwen3Config(**parts.text_config(num_hidden_layers=28), tie_word_embeddings=True)
    )
    return Flux2KleinPipeline(text_encoder=encoder, tokenizer=parts.qwen_tokenizer(), **_common(False, 24))


def _dev() -> Any:
    from diffusers import Flux2Pipeline
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        PixtralImageProcessor,
        PixtralProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["<unk>", "<s>", "</s>", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.bpe_tokenizer([*special, "<|im_start|>", "<|im_end|>"]),
        pad_token="<pad>",
        eos_token="</s>",
        padding_side="left",
    )
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=parts.CHAT)
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **parts.text_config(num_hidden_layers=31)},
        vision_config={"model_type": "pixtral", "head_dim": 4, "image_size": 32, "patch_size": 16, **vision},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    encoder = Mistral3ForConditionalGeneration(config)
    return Flux2Pipeline(text_encoder=encoder, tokenizer=processor, **_common(True, 24))


def _unpacked(pipe: Any, output: Tensor, noise: Tensor) -> Tensor:
    return pipe._unpack_latents_with_ids(output, pipe._prepare_latent_ids(noise))


def _references(images: dict[str, Tensor]) -> dict[str, Any]:
    return {"image": to_pil_images(images["source"])}


_KLEIN = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
# a reference has at least 64 pixels per side
_REFERENCES: dict[str, Any] = {
    "unpack_prediction": _unpacked,
    "image_arguments": _references,
    "sizes": ((96, 64), (64, 80)),
}
ROWS = {
    "flux2-dev": Row(
        _dev, 8 + 2 * 2, unpack_prediction=_unpacked, full=FullNetwork("Flux2Transformer2DModel", 160, 83.4)
    ),
    "flux2-klein": Row(
        _klein,
        8 + 2 * 2,
        unpack_prediction=_unpacked,
        full=FullNetwork("Flux2Transformer2DModel", 80, 18.7, _KLEIN),
    ),
    "flux2-klein-references": Row(_klein, 8 + 2 * 2, **_REFERENCES),
}
