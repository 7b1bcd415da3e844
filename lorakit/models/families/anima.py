"""Anima: the network of Cosmos-Predict2, conditioned on Qwen3 through learned embeddings of T5 tokens."""

from __future__ import annotations

from typing import Any

from lorakit.models.families.cosmos import CosmosFamily
from lorakit.models.families.family import Conditioning
from lorakit.models.families.modular import ModularFamily
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import TextSpec


class Anima(ModularFamily, CosmosFamily):
    """CircleStone Labs 2026, https://huggingface.co/circlestone-labs/Anima. The text encoder and the text
    conditioner stay frozen: their output is cached."""

    name = "anima"
    title = "Anima"
    pipelines = ("AnimaModularPipeline",)
    rank16_parameters = "13.8 M"
    license = "CircleStone Labs non-commercial"
    text = TextSpec(component_prefixes=("text_", "tokenizer", "t5_tokenizer"))

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
        from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

        # zeros up to this length count as text, so that longer texts would depend on the batch
        padded = pipe.text_conditioner.config.min_sequence_length
        device = pipe.text_encoder.device
        encoded = AnimaTextEncoderStep.encode_prompt(
            pipe,
            captions,
            prepare_unconditional_embeds=False,
            max_sequence_length=min(max_sequence_length(pipe, 512), padded),
            device=device,
        )
        dtype = pipe.text_conditioner.dtype
        embeds = AnimaTextConditioningStep._condition_prompt_embeds(
            pipe,
            **{name: value for name, value in encoded.items() if not name.startswith("negative_")},
            device=device,
            conditioning_dtype=dtype,
            output_dtype=dtype,
        )
        return {"prompt_embeds": embeds}  # (1, 512, D)

    def _sampling_blocks(self) -> Any:
        from diffusers.modular_pipelines import SequentialPipelineBlocks
        from diffusers.modular_pipelines.anima.modular_blocks_anima import (
            AnimaCoreDenoiseStep,
            AnimaDecodeStep,
        )

        denoise = AnimaCoreDenoiseStep().sub_blocks
        denoise.pop("text_conditioning")
        return SequentialPipelineBlocks.from_blocks_dict({**denoise, **AnimaDecodeStep().sub_blocks})
