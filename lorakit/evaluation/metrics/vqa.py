"""VQAScore (Lin et al., arXiv:2404.01291): the probability that a model answers Yes when it is asked whether
an image shows the prompt. The model runs here, or behind a server that speaks OpenAI's chat protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorakit.core.errors import ConfigError, LorakitError
from lorakit.data.prompts import Prompt
from lorakit.models import hub

if TYPE_CHECKING:
    from PIL import Image

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
ANSWER = "Yes"
KEY_VARIABLE = "LORAKIT_VQA_API_KEY"
VQA_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of a model on the hub
TOP_LOGPROBS = 20  # candidates for the first token that a server is asked for: the most that OpenAI allows
_OPTION = "--metric vqascore"


class YesNoModel(Protocol):
    """A model that answers a question about an image with the probability of Yes."""

    def yes_probability(self, image: Image.Image, question: str) -> float: ...
    def describe(self) -> dict[str, Any]: ...


class VqaScore:
    """A prompt scorer: a number from 0 to 1 for each image."""

    name = "vqascore"

    def __init__(self, model: YesNoModel) -> None:
        self.model = model

    @classmethod
    def load(cls, model: str | None, device: str) -> VqaScore:
        """Load a transformers model (hub id or folder), or connect to a server: its address with #MODEL."""
        if not model:
            remedy = f"{_OPTION}=HUB-ID, =FOLDER, or =http://127.0.0.1:8000/v1#MODEL"
            raise ConfigError("VQAScore needs a model", where=_OPTION, remedy=remedy)
        return cls(OpenAIVqaModel(model) if "://" in model else LocalVqaModel(model, device))

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return one score for each pair of an image and a prompt, by the prompt's `score_text`."""
        return [
            self.model.yes_probability(image.convert("RGB"), QUESTION.format(prompt=prompt.score_text))
            for image, prompt in zip(images, prompts, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        return {"metric": f"P({ANSWER!r}) to {QUESTION!r}", **self.model.describe()}


class LocalVqaModel:
    """A vision-language model of transformers. Only safetensors are read, and no code of the model is run."""

    def __init__(self, model: str, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from lorakit.models.device import inference_dtype

        is_folder = Path(model).is_dir()
        folder = Path(model) if is_folder else hub.download_model(model, VQA_FILES, _OPTION)
        self.label = folder.name if is_folder else model
        dtype = inference_dtype(device)
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
        self.model.to(device).eval()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.yes_token_ids = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() == ANSWER]
        if not self.yes_token_ids:
            raise ConfigError(f"the model has no token for {ANSWER!r}", where=f"{_OPTION}={model}")

    def yes_probability(self, image: Image.Image, question: str) -> float:
        """Return P(Yes) as the first token of the answer."""
        import torch

        inputs = self._inputs(image, question).to(self.model.device, self.model.dtype)
        text_config = self.model.config.get_text_config(decoder=True)
        if text_config.is_encoder_decoder:
            start = self.model.generation_config.decoder_start_token_id
            start = text_config.decoder_start_token_id if start is None else start
            inputs["decoder_input_ids"] = torch.tensor([[start]], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs).logits[0, -1].float()  # (V,)
        return float(logits.softmax(-1)[self.yes_token_ids].sum())

    def _inputs(self, image: Image.Image, question: str) -> Any:
        if not getattr(self.processor, "chat_template", None):
            return self.processor(images=image, text=question, return_tensors="pt")
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def describe(self) -> dict[str, Any]:
        return {"model": self.label, "dtype": str(self.model.dtype).removeprefix("torch.")}


class OpenAIVqaModel:
    """A model behind a server that returns token probabilities (vLLM, llama.cpp, a service).

    `spec` is ADDRESS#MODEL; the key comes from the environment variable LORAKIT_VQA_API_KEY.
    """

    def __init__(self, spec: str) -> None:
        from lorakit.models.chat_client import ChatClient

        address, _, self.model = spec.partition("#")
        if not self.model:
            remedy = "write http://127.0.0.1:8000/v1#MODEL"
            raise ConfigError(f"{spec!r} names no model of the server", where=_OPTION, remedy=remedy)
        self.client = ChatClient(address, api_key_env=KEY_VARIABLE, option=_OPTION)

    def yes_probability(self, image: Image.Image, question: str) -> float:
        """Return P(Yes) as the first token of the answer, summed over its spellings with spaces."""
        from lorakit.models.chat_client import ChatError

        try:
            reply = self.client.complete(
                self.model, question, image, max_tokens=1, lossless=True, top_logprobs=TOP_LOGPROBS
            )
        except ChatError as error:
            remedy = "check the server, then run the same command again: variants already scored are kept"
            message = f"no answer from the server: {error}"
            raise LorakitError(message, where=self.client.url, remedy=remedy) from error
        if not reply.first_token:
            remedy = "use a server that supports `top_logprobs`"
            message = "the server returns no token probabilities"
            raise LorakitError(message, where=self.client.url, remedy=remedy)
        return sum(math.exp(token.logprob) for token in reply.first_token if token.token.strip() == ANSWER)

    def describe(self) -> dict[str, Any]:
        return {"model": self.model, "server": self.client.host}
