"""VQAScore (Lin et al., arXiv:2404.01291): the probability that a model answers Yes when asked whether a
picture shows the prompt. The model runs here, or behind a server that speaks OpenAI's chat protocol."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
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
KEY_VARIABLE = "LORAKIT_VQA_KEY"
VQA_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of a model on the hub
_TOP_LOGPROBS = 20  # whose probabilities a server tells
_SECONDS = 120.0
_MAX_BYTES = 1 << 22


class YesNoModel(Protocol):
    """Something that answers a question about a picture with the probability of Yes."""

    def probability(self, image: Image.Image, question: str) -> float: ...
    def describe(self) -> dict[str, Any]: ...


class VqaScore:
    """An `Extra`: from 0 to 1 a picture."""

    name = "vqascore"

    def __init__(self, asked: YesNoModel) -> None:
        self.asked = asked

    @classmethod
    def open(cls, model: str | None, device: str) -> VqaScore:
        """By a hub id or folder of transformers, or a server's address with #MODEL."""
        if not model:
            remedy = "--also vqascore=HUB-ID, =FOLDER, or =http://127.0.0.1:8000/v1#MODEL"
            raise ConfigError("VQAScore needs a model", where="--also vqascore", remedy=remedy)
        return cls(OpenAIVqaModel(model) if "://" in model else LocalVqaModel(model, device))

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """One question a picture, with its `score_text`."""
        return [
            self.asked.probability(image.convert("RGB"), QUESTION.format(prompt=prompt.score_text))
            for image, prompt in zip(images, prompts, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        return {"metric": f"P({ANSWER!r}) to {QUESTION!r}", **self.asked.describe()}


class LocalVqaModel:
    """A vision-language model of transformers; only safetensors are read, and no code of a model's is run."""

    def __init__(self, model: str, device: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = (
            Path(model) if Path(model).is_dir() else hub.download_model(model, VQA_FILES, "--also vqascore")
        )
        self.label = folder.name if Path(model).is_dir() else model
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
        self.model.to(device).eval()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.yes = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() == ANSWER]
        if not self.yes:
            raise ConfigError(f"the model has no token for {ANSWER!r}", where=f"--also vqascore={model}")

    def probability(self, image: Image.Image, question: str) -> float:
        """P(Yes) as the first word of the answer."""
        import torch

        inputs = self._inputs(image, question).to(self.model.device, self.model.dtype)
        language = self.model.config.get_text_config(decoder=True)
        if language.is_encoder_decoder:
            start = self.model.generation_config.decoder_start_token_id
            start = language.decoder_start_token_id if start is None else start
            inputs["decoder_input_ids"] = torch.tensor([[start]], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs).logits[0, -1].float()  # (V,)
        return float(logits.softmax(-1)[self.yes].sum())

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
    """A server at ADDRESS#MODEL that tells the probabilities of its tokens (vLLM, llama.cpp, a service).

    The key comes from the environment (LORAKIT_VQA_KEY) and goes to this address alone.
    """

    def __init__(self, spec: str) -> None:
        address, _, self.model = spec.partition("#")
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not self.model:
            remedy = "write http://127.0.0.1:8000/v1#MODEL"
            raise ConfigError(f"{spec!r} is no server with a model", where="--also vqascore", remedy=remedy)
        self.url, self.host = address.rstrip("/"), parts.hostname
        self.key = os.environ.get(KEY_VARIABLE, "")
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if not local:
            print(f"the pictures leave this machine: they are sent to {self.host}", file=sys.stderr)
            if self.key and parts.scheme == "http":
                raise ConfigError("the key would be sent unencrypted", where=self.host, remedy="use https")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(NoRedirectHandler, *proxies)

    def probability(self, image: Image.Image, question: str) -> float:
        """P(Yes) as the first token of the answer, as the server tells it."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        content = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": question},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": _TOP_LOGPROBS,
        }
        try:
            tokens = self._ask(body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            return sum(math.exp(one["logprob"]) for one in tokens if one["token"].strip() == ANSWER)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            text = "the server does not tell the probabilities of its tokens"
            raise LorakitError(text, where=self.url, remedy="use one that answers `top_logprobs`") from error

    def _ask(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "lorakit"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=_SECONDS) as response:
                return json.loads(response.read(_MAX_BYTES))
        except (OSError, ValueError) as error:
            remedy = "check the server; the same command goes on with the next set of pictures"
            raise LorakitError(
                f"the server did not answer: {error}", where=self.url, remedy=remedy
            ) from error

    def describe(self) -> dict[str, Any]:
        return {"model": self.model, "server": self.host}


class NoRedirectHandler(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The key and the pictures go to the given address or nowhere."""
        return None
