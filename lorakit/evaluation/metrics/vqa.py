"""VQAScore (Lin et al., arXiv:2404.01291): the probability that a model answers Yes when it is asked whether
an image shows the prompt. The model runs here, or behind a server that speaks OpenAI's chat protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from lorakit.core.errors import ConfigError, LorakitError
from lorakit.data.prompts import Prompt
from lorakit.data.questions import ANSWERS, Answer
from lorakit.models.judge_files import resolve_judge

if TYPE_CHECKING:
    from PIL import Image

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
ANSWER = "Yes"
KEY_VARIABLE = "LORAKIT_VQA_API_KEY"
VQA_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of a model on the hub
TOP_LOGPROBS = 20  # candidates for the first token that a server is asked for: the most that OpenAI allows
_OPTION = "--metric vqascore"


class YesNoModel(Protocol):
    """A model that answers a question about an image."""

    def yes_probability(self, image: Image.Image, question: str) -> float: ...
    def answer_probabilities(self, image: Image.Image, question: str) -> dict[Answer, float]: ...
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
        return cls(load_vqa_model(model, device))

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return one score for each pair of an image and a prompt, by the prompt's `score_text`."""
        return [
            self.model.yes_probability(image.convert("RGB"), QUESTION.format(prompt=prompt.score_text))
            for image, prompt in zip(images, prompts, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        return {"metric": f"P({ANSWER!r}) to {QUESTION!r}", **self.model.describe()}


def load_vqa_model(model: str, device: str) -> YesNoModel:
    """Load a transformers model (hub id or folder), or connect to a server: its address with #MODEL.

    A model that is in use, by VQAScore or by questions, is not loaded again.
    """
    if "://" in model:
        return OpenAIVqaModel(model)
    loaded = _IN_USE.get((model, device))
    if loaded is None:
        _IN_USE[model, device] = loaded = LocalVqaModel(model, device)
    return loaded


class LocalVqaModel:
    """A vision-language model of transformers. Only safetensors are read, and no code of the model is run."""

    def __init__(self, model: str, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from lorakit.models.device import inference_dtype

        self.files = resolve_judge(model, VQA_FILES, _OPTION)
        folder, dtype = self.files.folder, inference_dtype(device)
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
        self.model.to(device).eval()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.words = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
        if ANSWER not in self.words:
            raise ConfigError(f"the model has no token for {ANSWER!r}", where=f"{_OPTION}={model}")

    def yes_probability(self, image: Image.Image, question: str) -> float:
        """Return P(Yes) as the first token of the answer."""
        probabilities = self._first_token(image, question)
        return float(sum(p for p, word in zip(probabilities, self.words, strict=False) if word == ANSWER))

    def answer_probabilities(self, image: Image.Image, question: str) -> dict[Answer, float]:
        """Return the probabilities of yes and no as the first token, in any case and spacing."""
        probabilities = zip(self._first_token(image, question), self.words, strict=False)
        return sum_answers((word, probability) for probability, word in probabilities)

    def _first_token(self, image: Image.Image, question: str) -> list[float]:
        """Return the probability of each token (V,) to begin the answer."""
        import torch

        inputs = self._inputs(image, question).to(self.model.device, self.model.dtype)
        text_config = self.model.config.get_text_config(decoder=True)
        if text_config.is_encoder_decoder:
            start = self.model.generation_config.decoder_start_token_id
            start = text_config.decoder_start_token_id if start is None else start
            inputs["decoder_input_ids"] = torch.tensor([[start]], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs).logits[0, -1].float()  # (V,)
        probabilities: list[float] = logits.softmax(-1).tolist()
        return probabilities

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
        return self.files.describe() | {"dtype": str(self.model.dtype).removeprefix("torch.")}


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
        return sum(p for word, p in self._first_token(image, question) if word.strip() == ANSWER)

    def answer_probabilities(self, image: Image.Image, question: str) -> dict[Answer, float]:
        """Return the probabilities of yes and no as the first token, in any case and spacing."""
        return sum_answers(self._first_token(image, question))

    def _first_token(self, image: Image.Image, question: str) -> list[tuple[str, float]]:
        """Return the most probable tokens that begin the answer, with their probabilities."""
        from lorakit.models.chat_errors import ChatError

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
        return [(token.token, math.exp(token.logprob)) for token in reply.first_token]

    def describe(self) -> dict[str, Any]:
        return {"model": self.model, "server": self.client.host}


_IN_USE: WeakValueDictionary[tuple[str, str], LocalVqaModel] = WeakValueDictionary()


def sum_answers(tokens: Iterable[tuple[str, float]]) -> dict[Answer, float]:
    """Return the total probability of the tokens that say yes, and of those that say no."""
    totals: dict[Answer, float] = dict.fromkeys(ANSWERS, 0.0)
    for text, probability in tokens:
        for answer in ANSWERS:
            if text.strip().casefold() == answer:
                totals[answer] += probability
    return totals
