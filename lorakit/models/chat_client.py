"""Client of a server that speaks OpenAI's chat protocol: vLLM, llama.cpp, LM Studio, Ollama, or a service.

Built on httpx2, which the hub's client installs too. OpenAI's own SDK does not fit: it follows redirects with
the key, reads OPENAI_* variables and sends facts about the machine, and its pauses cannot be cancelled.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import io
import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from PIL import Image

from lorakit.core.errors import ConfigError, DataError
from lorakit.core.secret_text import mask_secrets, mask_value
from lorakit.core.strict_json import parse_json

RETRY_DELAYS = (1.0, 3.0, 9.0, 27.0)  # seconds before each further try
MAX_RETRY_DELAY = 60.0  # limit of the delay that a server asks for
RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
MAX_RESPONSE_BYTES = 1 << 22
MAX_ERROR_BYTES = 1 << 14
JPEG_QUALITY = 92
_FATAL_STATUS = {
    401: "the server refuses the key",
    403: "the server refuses access",
    404: "the server has no such address or model",
}


T = TypeVar("T")


class ChatError(Exception):
    """A request without an answer. `code` is stable: timeout, unreachable, invalid_response, refused,
    http_NNN.

    `fatal` means that every further request would fail in the same way (a wrong key, an unknown model).
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.fatal = code, message, fatal


class _RetryableError(Exception):
    """An error after which another try may work, in `delay` seconds if the server names a time."""

    def __init__(self, error: ChatError, delay: float | None = None) -> None:
        super().__init__(error.message)
        self.error, self.delay = error, delay


@dataclass(frozen=True)
class TokenLogprob:
    """A token that the answer could have started with, and its log probability."""

    token: str
    logprob: float


@dataclass(frozen=True)
class ChatReply:
    """An answer. `truncated` if it reached max_tokens; `first_token` if log probabilities were requested."""

    text: str
    truncated: bool = False
    first_token: tuple[TokenLogprob, ...] = ()


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
        return self._masked(lambda: _parse_completion(self._request("POST", "chat/completions", body)))

    def list_models(self) -> list[str]:
        """Return the names of the models that the server offers. Raises `ChatError`."""
        return self._masked(lambda: _parse_models(self._request("GET", "models", None)))

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

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Return the JSON answer; try again, with growing delays, where that may help."""
        for delay in (*RETRY_DELAYS, None):
            try:
                return self._try_request(method, path, body)
            except _RetryableError as failure:
                if delay is None:
                    raise failure.error from failure
                pause = delay if failure.delay is None else failure.delay
                if self._cancelled.wait(min(pause, MAX_RETRY_DELAY)):
                    raise failure.error from failure
        raise AssertionError("the last try returns or raises")

    def _try_request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        deadline = time.monotonic() + self.timeout
        try:
            with self._http.stream(method, f"{self.url}/{path}", json=body) as response:
                if not response.is_success:
                    text = self._read_text(response, MAX_ERROR_BYTES, deadline)
                    raise _status_error(response, text, self._key)
                text = self._read_text(response, MAX_RESPONSE_BYTES, deadline)
        except httpx2.TimeoutException as error:
            failure = ChatError("timeout", f"no answer within {self.timeout:g} s")
            raise _RetryableError(failure) from error
        except httpx2.RequestError as error:
            failure = ChatError("unreachable", f"the server cannot be reached: {error}")
            raise _RetryableError(failure) from error
        try:
            return mask_value(parse_json(text, self.url), self._key)
        except DataError as error:
            raise _RetryableError(ChatError("invalid_response", "the answer is not JSON")) from error

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


# ---- responses ---------------------------------------------------------------------------------------------


def _status_error(response: httpx2.Response, body: str, key: str) -> Exception:
    """Return the error for a failed status, with the server's own words but without the key."""
    status, detail = response.status_code, ""
    with contextlib.suppress(DataError, KeyError, TypeError):
        error = mask_value(parse_json(body, "the answer"), key)["error"]
        text = error["message"] if isinstance(error, dict) else error
        detail = f": {_one_line(text)}"
    if status in _FATAL_STATUS:
        return ChatError(f"http_{status}", f"{_FATAL_STATUS[status]}{detail}", fatal=True)
    failure = ChatError(f"http_{status}", f"the server answered with status {status}{detail}")
    if status in RETRYABLE_STATUS:
        return _RetryableError(failure, _retry_after(response.headers.get("Retry-After")))
    return failure


def _one_line(text: Any) -> str:
    """Return the first 200 characters of a server's text, without line breaks and control characters."""
    words = " ".join(str(text).split())
    return "".join(letter for letter in words if letter.isprintable())[:200]


def _retry_after(header: str | None) -> float | None:
    """Return the delay in seconds that a Retry-After header asks for, as a number or a date (RFC 9110)."""
    if not header:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None


def _parse_models(value: Any) -> list[str]:
    try:
        return [_one_line(model["id"]) for model in value["data"]]
    except (KeyError, TypeError) as error:
        raise ChatError("invalid_response", "the answer has no list of models") from error


def _parse_completion(value: Any) -> ChatReply:
    """Parse a chat completion. A refusal, and an answer without text, raise `ChatError`."""
    try:
        choice = value["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        finish_reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ChatError("invalid_response", "the answer has no choices[0].message") from error
    if message.get("refusal") or finish_reason == "content_filter":
        raise ChatError("refused", _one_line(message.get("refusal") or "filtered by the server"))
    if isinstance(text, list):  # some servers answer in parts
        text = "".join(part.get("text", "") for part in text if isinstance(part, dict))
    if not isinstance(text, str):
        raise ChatError("invalid_response", "the answer's content is not text")
    return ChatReply(text.strip(), finish_reason == "length", _first_token(choice))


def _first_token(choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """Return the candidates for the first token, most likely first; () if the server does not return them."""
    try:
        candidates = choice["logprobs"]["content"][0]["top_logprobs"]
        return tuple(TokenLogprob(str(one["token"]), float(one["logprob"])) for one in candidates)
    except (KeyError, IndexError, TypeError, ValueError):
        return ()
