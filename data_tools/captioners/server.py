"""Captions by a server that speaks OpenAI's chat protocol: vLLM, llama.cpp, LM Studio, Ollama, or a service.

Only the standard library is used. The key comes from the environment and is sent to the given address alone:
redirects are refused. A busy or silent server is asked again, with a growing pause.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import io
import ipaddress
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from data_tools.captioners.captioner import (
    CHAT_PROMPT,
    Captioner,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
)
from data_tools.captioners.options import CaptionerOptions
from lorakit.core.errors import ConfigError

RETRY_DELAYS = (1.0, 3.0, 9.0, 27.0)  # seconds before asking again
MAX_RETRY_DELAY = 60.0  # of those that a server asks for itself
RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
MAX_BYTES = 1 << 22  # of an answer
_FATAL_STATUS = {
    401: "the server refuses the key",
    403: "the server refuses access",
    404: "no such address or model",
}


class _RetryableError(Exception):
    """Worth asking again; `pause` is what the server asked for, in seconds."""

    def __init__(self, failure: CaptionFailure, pause: float | None = None) -> None:
        super().__init__(failure.message)
        self.failure, self.pause = failure, pause


class NoRedirectHandler(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The key and the picture go to the given address or nowhere."""
        return None


class OpenAICaptioner(Captioner):
    """A server at `options.server`, such as http://127.0.0.1:8000/v1."""

    prompts = (CHAT_PROMPT,)

    def __init__(self, options: CaptionerOptions) -> None:
        self.options, self.workers = options, options.at_once
        self.url = _base_url(str(options.server))
        self.key = os.environ.get(options.key, "")
        host = urllib.parse.urlsplit(self.url).hostname or ""
        self.local = _is_loopback(host)
        # A proxy of the environment would see the pictures, and could not reach this machine anyway.
        proxies = [urllib.request.ProxyHandler({})] if self.local else []
        self._opener = urllib.request.build_opener(NoRedirectHandler, *proxies)
        self._stopped = threading.Event()
        self.model = options.model or self._only_model()
        self.name = self.model
        if not self.local:
            print(f"the pictures leave this machine: they are sent to {host}", file=sys.stderr)
            if self.key and self.url.startswith("http://"):
                remedy = "use https, or a server on this machine"
                raise ConfigError("the key would be sent unencrypted", where=f"server: {host}", remedy=remedy)

    def describe(self, asks: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        return [self._describe(ask) for ask in asks]

    def stop(self) -> None:
        self._stopped.set()

    def _describe(self, ask: CaptionRequest) -> CaptionResponse:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.options.tokens,
            "temperature": self.options.temperature,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": ask.prompt},
                        {"type": "image_url", "image_url": {"url": _data_uri(ask)}},
                    ],
                }
            ],
        }
        if self.options.temperature > 0:
            body["seed"] = ask.seed
        return _parse_completion(self._patiently("chat/completions", body))

    def _patiently(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON answer, asked for again after a while when that may help."""
        for pause in RETRY_DELAYS:
            try:
                return self._ask(path, body)
            except _RetryableError as again:
                if self._stopped.wait(min(pause if again.pause is None else again.pause, MAX_RETRY_DELAY)):
                    raise again.failure from again
        try:
            return self._ask(path, body)
        except _RetryableError as again:
            raise again.failure from again

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "lorakit"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        try:
            with self._opener.open(request, timeout=self.options.timeout) as response:
                raw = _read_body(response, time.monotonic() + self.options.timeout)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from error
        except TimeoutError as error:
            raise _RetryableError(
                CaptionFailure("timeout", f"no answer within {self.options.timeout:g} s")
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _RetryableError(
                CaptionFailure("unreachable", f"the server cannot be reached: {reason}")
            ) from error
        try:
            return json.loads(raw)
        except ValueError as error:
            raise _RetryableError(CaptionFailure("malformed", "the server's answer is not JSON")) from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        status, said = error.code, _error_detail(error)
        if status in _FATAL_STATUS:
            return CaptionFailure(f"http_{status}", f"{_FATAL_STATUS[status]}{said}", hopeless=True)
        failure = CaptionFailure(f"http_{status}", f"the server answered {status}{said}")
        if status in RETRYABLE_STATUS:
            return _RetryableError(failure, _retry_after(error.headers.get("Retry-After")))
        return failure

    def _only_model(self) -> str:
        """The model that the server has, when it has one only."""
        try:
            listed = self._patiently("models", None)
            names = [str(entry["id"]) for entry in listed["data"]]
        except (CaptionFailure, KeyError, TypeError) as error:
            remedy = "check --server (it ends in /v1 as a rule), and name the model: --model NAME"
            raise ConfigError(
                f"the server does not list its models: {error}", where=self.url, remedy=remedy
            ) from error
        if len(names) != 1:
            remedy = f"give --model with one of {', '.join(names[:10])}"
            raise ConfigError(f"the server has {len(names)} models", where=self.url, remedy=remedy)
        return names[0]


def _base_url(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        remedy = "write http://127.0.0.1:8000/v1"
        raise ConfigError(f"{address!r} is no server's address", where="server", remedy=remedy)
    if parts.username or parts.password:
        remedy = "put the key into the environment variable that --key-env names"
        raise ConfigError("a server's address must not hold a password", where="server", remedy=remedy)
    return address.rstrip("/").removesuffix("/chat/completions")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _data_uri(ask: CaptionRequest) -> str:
    buffer = io.BytesIO()
    ask.picture.save(buffer, format="JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _read_body(response: Any, deadline: float) -> bytes:
    """The whole body; one that drips in after the deadline or does not end is given up."""
    parts, size = [], 0
    while piece := response.read1(1 << 16):
        parts.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > MAX_BYTES:
            raise CaptionFailure("malformed", f"the answer is longer than {MAX_BYTES} bytes")
    return b"".join(parts)


def _error_detail(error: urllib.error.HTTPError) -> str:
    """What the server says about its refusal, in a line."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        value = json.loads(error.read(1 << 14))
        found = value["error"] if isinstance(value, dict) else None
        text = found["message"] if isinstance(found, dict) else found
        return f": {' '.join(str(text).split())[:200]}"
    return ""


def _retry_after(value: str | None) -> float | None:
    """Seconds from now: the header holds a number of them, or a date."""
    if not value:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _parse_completion(value: Any) -> CaptionResponse:
    """The text of a completion; anything that has none is a failure of this image."""
    try:
        choice = value["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CaptionFailure("malformed", "the answer holds no choices[0].message") from error
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise CaptionFailure("refused", str(message.get("refusal") or "filtered by the server")[:200])
    if isinstance(text, list):  # some servers answer in parts
        text = "".join(part.get("text", "") for part in text if isinstance(part, dict))
    if not isinstance(text, str):
        raise CaptionFailure("malformed", "the answer's content is no text")
    return CaptionResponse(text.strip(), cut=choice.get("finish_reason") == "length")
