"""Captions from a server that speaks OpenAI's chat protocol."""

from __future__ import annotations

from collections.abc import Sequence

from data_tools.captioners.captioner import (
    CHAT_PROMPT,
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
)
from data_tools.captioners.options import CaptionerOptions
from lorakit.core.errors import ConfigError
from lorakit.models.chat_client import ChatClient
from lorakit.models.chat_errors import ChatError

REQUESTS_IN_FLIGHT = 4


class OpenAICaptioner(Captioner):
    """A model behind the server at `options.server`, such as http://127.0.0.1:8000/v1."""

    prompts = (CHAT_PROMPT,)

    def __init__(self, options: CaptionerOptions) -> None:
        self.options, self.num_workers = options, options.concurrency or REQUESTS_IN_FLIGHT
        self.client = ChatClient(
            str(options.server), api_key_env=options.api_key_env, timeout=options.timeout
        )
        self.name = options.model or self._single_served_model()

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        return [self._caption_one(request) for request in requests]

    def cancel(self) -> None:
        self.client.cancel()

    def _caption_one(self, request: CaptionRequest) -> CaptionResponse:
        try:
            reply = self.client.complete(
                self.name,
                request.prompt,
                request.image,
                max_tokens=self.options.max_tokens,
                temperature=self.options.temperature,
                seed=request.seed if self.options.temperature > 0 else None,
            )
        except ChatError as error:
            raise CaptionFailure(error.code, error.message, fatal=error.fatal) from error
        usage = (reply.prompt_tokens, reply.answer_tokens)
        return CaptionResponse(reply.text, truncated=reply.truncated, usage=usage)

    def _single_served_model(self) -> str:
        """Return the name of the server's model; a server with several is a `ConfigError`."""
        try:
            names = self.client.list_models()
        except ChatError as error:
            remedy = "check --server, or name the model: --model NAME"
            raise ConfigError(
                f"the server does not list its models: {error}", where=self.client.url, remedy=remedy
            ) from error
        if len(names) != 1:
            remedy = f"give --model with one of {', '.join(names[:10])}" if names else "load a model there"
            raise ConfigError(f"the server has {len(names)} models", where=self.client.url, remedy=remedy)
        return names[0]
