"""Client of a server that speaks OpenAI's chat protocol: vLLM, llama.cpp, LM Studio, Ollama, or a service.

Built on httpx2, which the hub's client installs too. OpenAI's own SDK does not fit: it follows redirects with
the key, reads OPENAI_* variables and sends facts about the machine, and its pauses cannot be cancelled.
"""

from __future__ import annotations

import base64
import contextlib
import io
import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx2
from PIL import Image

from lorakit.core.errors import ConfigError, DataError
from lorakit.core.secret_text import mask_secrets, mask_value
from lorakit.core.strict_json import parse_json
from lorakit.models.chat_replies import (
    OPTIONAL_PARAMETERS,
    WANTS_STREAM,
    ChatError,
    ChatReply,
    RetryableError,
    in_dialect,
    join_events,
    parse_completion,
    parse_models,
    raise_reported_error,
    refused_parameter,
    status_error,
)

RETRY_DELAYS = (1.0, 3.0, 9.0, 27.0)  # seconds before each further try
MAX_RETRY_DELAY = 60.0  # limit of the delay that a server asks for
FIRST_TRIES = 2  # of a server that has never answered
MAX_RESPONSE_BYTES = 1 << 22
MAX_ERROR_BYTES = 1 << 14
JPEG_QUALITY = 92

T = TypeVar("T")


class ChatClient:
    """Requests to the server at `url` (http://127.0.0.1:8000/v1), from any number of threads.

    The key is read from the environment variable `api_key_env` and sent to this address only: redirects are
    not followed, and a key in an answer is masked. `timeout` limits each try, in seconds. `option` is the
    name of the user's option for the address.
    """

    def __init__(self, url: str, *, api_key_env: str, timeout: float = 120.0, option: str = "server") -> None:
        self.url, self.timeout = _base_url(url, option), timeout
        parts = httpx2.URL(self.url)
        self.host, self.is_local = parts.host, _is_loopback(parts.host)
        headers = {"User-Agent": "lorakit", "Accept-Encoding": "identity"}
        self._key = os.environ.get(api_key_env, "").strip()
        if self._key:
            _check_key(self._key, api_key_env)
            if not self.is_local and parts.scheme == "http":
                remedy = "use https, or a server on this machine"
                raise ConfigError(
                    "the key would be sent unencrypted", where=f"{option}: {self.host}", remedy=remedy
                )
            headers["Authorization"] = f"Bearer {self._key}"
        if not self.is_local:
            logging.getLogger("lorakit").warning("the images are sent to another machine: %s", self.host)
        # trust_env: a proxy of the environment would see the images, and cannot reach a local server
        self._http = httpx2.Client(headers=headers, timeout=timeout, trust_env=not self.is_local)
        self._cancelled = threading.Event()
        self._has_answered = False
        self._refused: frozenset[str] = frozenset()  # parameters that this server does not take
        self._streams = False

    def complete(
        self,
        model: str,
        prompt: str,
        image: Image.Image,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        lossless: bool = False,
        top_logprobs: int | None = None,
    ) -> ChatReply:
        """Answer a prompt about an RGB image, sent as a JPEG or, if `lossless`, a PNG.

        With `top_logprobs`, the reply has that many candidates for its first token, if the server returns
        them. Raises `ChatError`.
        """
        content = [
            {"type": "image_url", "image_url": {"url": _data_uri(image, lossless)}},
            {"type": "text", "text": prompt},
        ]
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "messages": [{"role": "user", "content": content}],
        }
        if seed is not None:
            body["seed"] = seed
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        return self._masked(lambda: parse_completion(self._request_in_dialect(body), max_tokens))

    def list_models(self) -> list[str]:
        """Return the names of the models that the server offers. Raises `ChatError`."""
        return self._masked(lambda: parse_models(self._request("GET", "models", None)))

    def cancel(self) -> None:
        """Stop waiting between tries: requests in progress end at their next failure."""
        self._cancelled.set()

    def _masked(self, request: Callable[[], T]) -> T:
        """Return the result of a request; the message of its error has no key."""
        try:
            return request()
        except ChatError as error:
            message = mask_secrets(error.message, self._key)
            raise ChatError(error.code, message, fatal=error.fatal) from None  # the cause may have the key

    def _request_in_dialect(self, body: dict[str, Any]) -> Any:
        """Request a completion without the parameters that the server refuses, learnt from its errors."""
        for _ in OPTIONAL_PARAMETERS:
            refused, streams = self._refused, self._streams
            try:
                return self._request("POST", "chat/completions", in_dialect(body, refused, streams))
            except ChatError as error:
                if error.code not in ("http_400", "http_422"):
                    raise
                sent = in_dialect(body, refused, streams)
                parameter = refused_parameter(error.message, sent)
                if parameter is None and (streams or not WANTS_STREAM.search(error.message)):
                    raise
                self._refused |= {parameter} if parameter else frozenset()
                self._streams |= parameter is None
        return self._request("POST", "chat/completions", in_dialect(body, self._refused, self._streams))

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Return the JSON answer; try again, with growing delays, where that may help.

        A server that has never answered is tried twice: it is not running, or the address is wrong.
        """
        for number, delay in enumerate((*RETRY_DELAYS, None), 1):
            try:
                return self._try_request(method, path, body)
            except RetryableError as failure:
                is_dead = failure.error.code == "unreachable" and not self._has_answered
                if delay is None or (is_dead and number >= FIRST_TRIES):
                    raise failure.error from failure
                pause = delay if failure.delay is None else failure.delay
                if self._cancelled.wait(min(pause, MAX_RETRY_DELAY)):
                    raise failure.error from failure
        raise AssertionError("the last try returns or raises")

    def _try_request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        deadline = time.monotonic() + self.timeout
        try:
            with self._http.stream(method, f"{self.url}/{path}", json=body) as response:
                self._has_answered = True
                if not response.is_success:
                    text = self._read_text(response, MAX_ERROR_BYTES, deadline)
                    raise status_error(response, text, self._key)
                text = self._read_text(response, MAX_RESPONSE_BYTES, deadline)
        except httpx2.TimeoutException as error:
            failure = ChatError("timeout", f"no answer within {self.timeout:g} s")
            raise RetryableError(failure) from error
        except httpx2.RequestError as error:
            failure = ChatError("unreachable", f"the server cannot be reached: {error}")
            raise RetryableError(failure) from error
        if text.lstrip().startswith(("data:", "event:", ": ")):
            text = join_events(text)
        try:
            value = mask_value(parse_json(text, self.url), self._key)
            raise_reported_error(value)
            return value
        except DataError as error:
            raise RetryableError(ChatError("invalid_response", "the answer is not JSON")) from error

    def _read_text(self, response: httpx2.Response, max_bytes: int, deadline: float) -> str:
        """Read the body; give up if it is too long, or arrives after the deadline."""
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout("the answer arrives too slowly", request=response.request)
            if len(content) > max_bytes:
                raise ChatError("invalid_response", f"the answer is longer than {max_bytes} bytes")
        return content.decode("utf-8", errors="replace")


# ---- addresses and images ----------------------------------------------------------------------------------


def _base_url(url: str, option: str) -> str:
    remedy = "write it like http://127.0.0.1:8000/v1"
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{url!r} is not a server's address", where=option, remedy=remedy) from error
    if parts.userinfo:
        remedy = f"put the key into an environment variable, and take it out of {option}"
        raise ConfigError("a server's address must not contain a password", where=option, remedy=remedy)
    if parts.query or parts.fragment:
        remedy = f"put a key into an environment variable, and take everything from the ? on out of {option}"
        raise ConfigError("a server's address must end before the question mark", where=option, remedy=remedy)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError(f"{url!r} is not a server's address", where=option, remedy=remedy)
    return url.rstrip("/").removesuffix("/chat/completions")


def _check_key(key: str, variable: str) -> None:
    """Raise ConfigError for a key that no header can carry, without the key."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            "the key has a blank, a control character or a letter that is not ASCII",
            where=f"environment variable {variable}",
            remedy="set it to the key alone",
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _data_uri(image: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
