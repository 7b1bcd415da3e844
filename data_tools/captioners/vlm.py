"""Captions by any model of transformers that turns an image and a text into a text.

Chat models get the question through their own chat template, others (BLIP, Florence-2 with its task words) as
plain text. Nothing but safetensors and the library's own classes is loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from data_tools.captioners.captioner import (
    CHAT_PROMPT,
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
    ModelFolder,
)
from data_tools.captioners.options import CaptionerOptions
from lorakit.core.errors import ConfigError

_TASK_PROMPTS = {"florence2": "<DETAILED_CAPTION>", "kosmos-2": "<grounding>An image of"}


class VisionLanguageCaptioner(Captioner):
    """A model that runs here; its weights are loaded when the first picture is asked about."""

    def __init__(self, model: ModelFolder, options: CaptionerOptions) -> None:
        from transformers import AutoProcessor
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        self.name, self.batch, self._made_of = model.name, options.at_once, model
        self.tokens, self.temperature = options.tokens, options.temperature
        kind = str(model.config().get("model_type"))
        if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            remedy = "use an image-and-text-to-text model that transformers knows by itself"
            raise ConfigError(
                f"{kind} makes no text of images", where=f"captioner: {self.name}", remedy=remedy
            )
        self.processor: Any = model.load(AutoProcessor)
        self.chat = bool(getattr(self.processor, "chat_template", None))
        self.prompts = (CHAT_PROMPT if self.chat else _TASK_PROMPTS.get(kind, ""),)
        self._device = options.device

    @functools.cached_property
    def model(self) -> Any:
        """The model, on its device."""
        import torch
        from transformers import AutoModelForImageTextToText

        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        model = self._made_of.load(AutoModelForImageTextToText, dtype=dtype, use_safetensors=True)
        if hasattr(self.processor, "tokenizer") and not model.config.is_encoder_decoder:
            self.processor.tokenizer.padding_side = "left"  # a short prompt must end where its answer begins
        return model.to(device).eval().requires_grad_(False)

    def describe(self, asks: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        import torch

        try:
            with torch.inference_mode(), torch.random.fork_rng(enabled=self.temperature > 0):
                return self._describe(asks)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise CaptionFailure("out_of_memory", "too large for this device") from error
        except (ValueError, RuntimeError, IndexError) as error:  # of processors and models, for an input
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CaptionFailure("model_error", reason) from error

    def _describe(self, asks: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        import torch

        if self.temperature > 0 and len(asks) > 1:  # an answer must not depend on who is asked beside it
            return [answer for ask in asks for answer in self._describe([ask])]
        model = self.model  # loaded first: the side to pad on depends on it
        inputs = self._inputs(asks).to(model.device, model.dtype)
        how: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if self.temperature > 0:
            torch.manual_seed(asks[0].seed)
            how = {"do_sample": True, "temperature": self.temperature}
        output = model.generate(**inputs, max_new_tokens=self.tokens, **how)
        return self._answers(inputs.get("input_ids"), output)

    def _inputs(self, asks: Sequence[CaptionRequest]) -> Any:
        if not self.chat:
            pictures, texts = [ask.picture for ask in asks], [ask.prompt for ask in asks]
            given = {"text": texts} if any(texts) else {}
            return self.processor(images=pictures, return_tensors="pt", padding=True, **given)
        talks = [[{"role": "user", "content": _content(ask)}] for ask in asks]
        return self.processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _answers(self, asked: Any, output: Any) -> list[CaptionResponse]:
        """Texts of the new tokens; an answer without an end mark was cut off."""
        new, length = output, 0 if asked is None else asked.shape[1]
        if length <= output.shape[1] and bool((output[:, :length] == asked).all() if length else False):
            new = output[:, length:]  # decoder-only models repeat the question
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) - {None}
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        cut = [len(row) >= self.tokens and not ends & set(row.tolist()) for row in new]
        return [CaptionResponse(text.strip(), cut=was_cut) for text, was_cut in zip(texts, cut, strict=True)]


def _content(ask: CaptionRequest) -> list[dict[str, Any]]:
    return [{"type": "image", "image": ask.picture}, {"type": "text", "text": ask.prompt}]
