"""Captions by image-text-to-text models of transformers.

Chat models get the prompt through their own chat template, others (BLIP, Florence-2 with its task prompts) as
plain text. Only safetensors and the library's own classes are loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from data_tools.captioners import unsupported_models
from data_tools.captioners.batch_size import BatchSize
from data_tools.captioners.captioner import (
    CHAT_PROMPT,
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
)
from data_tools.captioners.model_folder import ModelFolder
from data_tools.captioners.options import CaptionerOptions
from lorakit.core.errors import first_line

_TASK_PROMPTS = {"florence2": "<DETAILED_CAPTION>", "kosmos-2": "<grounding>An image of"}


class VisionLanguageCaptioner(Captioner):
    """A model that runs here; its weights are loaded for the first image."""

    def __init__(self, model: ModelFolder, options: CaptionerOptions) -> None:
        from transformers import AutoProcessor
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        from lorakit.models.device import default_device

        self.name, self._model_folder = model.name, model
        self._device = options.device or default_device().type
        self._batch = BatchSize(self._device, options.concurrency)
        self.max_new_tokens, self.temperature = options.max_tokens, options.temperature
        config = model.read_config()
        model_type = str(config.get("model_type"))
        if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise unsupported_models.model_type_error(self.name, model_type, config)
        unsupported_models.check_architecture(self.name, config)
        self.processor: Any = model.load_pretrained(AutoProcessor)
        self.has_chat_template = bool(getattr(self.processor, "chat_template", None))
        self.prompts = (CHAT_PROMPT if self.has_chat_template else _TASK_PROMPTS.get(model_type, ""),)

    @property
    def batch_size(self) -> int:
        return self._batch.value

    @functools.cached_property
    def model(self) -> Any:
        """The model, on its device."""
        from transformers import AutoModelForImageTextToText

        from lorakit.models.device import inference_dtype

        dtype = inference_dtype(self._device)
        model = self._model_folder.load_pretrained(
            AutoModelForImageTextToText, dtype=dtype, use_safetensors=True
        )
        if hasattr(self.processor, "tokenizer") and not model.config.is_encoder_decoder:
            self.processor.tokenizer.padding_side = "left"  # so that each prompt ends where its answer starts
        return model.to(self._device).eval().requires_grad_(False)

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        import torch

        from lorakit.models.memory import empty_device_cache, is_out_of_memory

        try:
            assert self.model is not None  # loaded here: its size is not that of an image
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = "the model does not fit this device (use a smaller one, --device cpu, or a server)"
            raise CaptionFailure("out_of_memory", message, fatal=True) from error
        try:
            with torch.inference_mode(), torch.random.fork_rng(enabled=self.temperature > 0):
                responses = self._generate(requests)
        except (MemoryError, ValueError, RuntimeError, IndexError) as error:
            # of processors and models, for one input
            if is_out_of_memory(error):
                self._batch.record_out_of_memory(len(requests))
                empty_device_cache(torch.device(self._device))
                message = "an image is too large for this device (lower --max-side)"
                raise CaptionFailure("out_of_memory", message) from error
            raise CaptionFailure("model_error", first_line(error)) from error
        self._batch.record_success(len(requests))
        return responses

    def _generate(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        import torch

        # An answer must not depend on its batch: sampled ones are generated alone, and models without a chat
        # template get equal prompts only, which need no padding.
        differ = not self.has_chat_template and len({request.prompt for request in requests}) > 1
        if len(requests) > 1 and (self.temperature > 0 or differ):
            return [answer for request in requests for answer in self._generate([request])]
        model = self.model  # loaded first: it sets the padding side
        inputs = self._inputs(requests).to(model.device, model.dtype)
        generation_kwargs: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if self.temperature > 0:
            torch.manual_seed(requests[0].seed)
            generation_kwargs = {"do_sample": True, "temperature": self.temperature}
        output = model.generate(**inputs, max_new_tokens=self.max_new_tokens, **generation_kwargs)
        return self._decode_responses(inputs.get("input_ids"), output)

    def _inputs(self, requests: Sequence[CaptionRequest]) -> Any:
        if not self.has_chat_template:
            images, texts = [request.image for request in requests], [request.prompt for request in requests]
            text_kwargs = {"text": texts} if any(texts) else {}
            return self.processor(images=images, return_tensors="pt", padding=True, **text_kwargs)
        conversations = [[{"role": "user", "content": _content(request)}] for request in requests]
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _decode_responses(self, prompt_ids: Any, output: Any) -> list[CaptionResponse]:
        """Decode the generated tokens (B, T); an answer without an end token is truncated."""
        generated, length = output, 0 if prompt_ids is None else prompt_ids.shape[1]
        if length <= output.shape[1] and bool((output[:, :length] == prompt_ids).all() if length else False):
            generated = output[:, length:]  # decoder-only models repeat the prompt
        eos_ids = self.model.generation_config.eos_token_id
        eos_ids = set(eos_ids if isinstance(eos_ids, list) else [eos_ids]) - {None}
        texts = self.processor.batch_decode(generated, skip_special_tokens=True)
        truncated = [len(row) >= self.max_new_tokens and not eos_ids & set(row.tolist()) for row in generated]
        return [
            CaptionResponse(text.strip(), truncated=cut) for text, cut in zip(texts, truncated, strict=True)
        ]


def _content(request: CaptionRequest) -> list[dict[str, Any]]:
    return [{"type": "image", "image": request.image}, {"type": "text", "text": request.prompt}]
