"""Client of a server that speaks OpenAI's chat protocol: vLLM, llama.cpp, LM Studio, Ollama, or a service.

Built on httpx2, which the hub's client installs too. OpenAI's own SDK does not fit: it follows redirects with
the key, reads OPENAI_* variables and sends facts about the machine, and its pauses cannot be cancelled.
"""

from __future__ import annotations

import base64
import contextlib
import io
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
from lorakit.models import chat_dialects, chat_errors, chat_replies
from lorakit.models.chat_errors import MAX_RETRY_DELAY, ChatError, RetryableError
from lorakit.models.chat_replies import ChatReply
from lorakit.models.server_address import base_url, is_loopback, transport_error, useful_addresses

RETRY_DELAYS = (1.0, 3.0, 9.0, 27.0)  # seconds before each further try
LOADING_PATIENCE = 600.0  # seconds in which a server may load its model
FIRST_TRIES = 2  # of a server that has never answered
MAX_RESPONSE_BYTES = 1 << 22
MAX_ERROR_BYTES = 1 << 14
JPEG_QUALITY = 92
MIN_IMAGE_SIDE = 256  # pixels to which an image is reduced, at most, for a server that refuses its size
PROBE_TIMEOUT = 5.0  # seconds for each address that could be meant instead
LISTED_MODELS = 10

T = TypeVar("T")


class ChatClient:
    """Requests to the server at `url` (http://127.0.0.1:8000/v1), from any number of threads.

    The key is read from the environment variable `api_key_env` and sent to this address only: redirects are
    not followed, and a key in an answer is masked. `timeout` limits each try, in seconds. `option` is the
    name of the user's option for the address.
    """

    def __init__(self, url: str, *, api_key_env: str, timeout: float = 120.0, option: str = "server") -> None:
        self.url, self.timeout, self.option = base_url(url, option), timeout, option
        parts = httpx2.URL(self.url)
        self.host, self.is_local = parts.host, is_loopback(parts.host)
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
        # trust_env: a proxy of the environment would see the images, and cannot reach a local server. The
        # certificates that the user trusts (SSL_CERT_FILE) count for a local server, too.
        self._http = httpx2.Client(
            headers=headers,
            timeout=timeout,
            trust_env=not self.is_local,
            verify=httpx2.create_ssl_context() if parts.scheme == "https" else True,
        )
        self._cancelled = threading.Event()
        self._has_answered = False
        self._has_completed = False  # an answer of the chat protocol has come
        self._refused: frozenset[str] = frozenset()  # parameters that this server does not take
        self._streams = False
        self._max_side: int | None = None  # pixels of an image that this server takes
        self._lock = threading.Lock()

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
        them. An image that the server refuses for its size is sent smaller, unless `lossless`. Raises
        `ChatError`.
        """
        body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        if seed is not None:
            body["seed"] = seed
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}

        def request() -> ChatReply:
            while True:
                sent = image if lossless else _reduced(image, self._max_side)
                content = [
                    {"type": "image_url", "image_url": {"url": _data_uri(sent, lossless)}},
                    {"type": "text", "text": prompt},
                ]
                messages = {"messages": [{"role": "user", "content": content}]}
                try:
                    value = self._request_in_dialect(body | messages)
                except ChatError as error:
                    if error.code != "image_too_large" or lossless or not self._reduce(max(sent.size)):
                        raise
                    continue
                reply = chat_replies.parse_completion(value, max_tokens)
                self._has_completed = True
                return reply

        return self._explained(request, model)

    def list_models(self) -> list[str]:
        """Return the names of the models that the server offers. Raises `ChatError`."""
        return self._explained(lambda: chat_replies.parse_models(self._request("GET", "models", None)), None)

    def cancel(self) -> None:
        """Stop waiting between tries: requests in progress end at their next failure."""
        self._cancelled.set()

    def _explained(self, request: Callable[[], T], model: str | None) -> T:
        """Return the result of a request; the message of its error has no key, and says what to try."""
        try:
            return request()
        except ChatError as error:
            message = mask_secrets(error.message, self._key)
            if error.misdirected and not self._has_completed and (advice := self._advice(model)):
                message, fatal = f"{message}; {advice}", True
            else:
                fatal = error.fatal
            raise ChatError(error.code, message, fatal=fatal) from None  # the cause may have the key

    def _advice(self, model: str | None) -> str:
        """Return what to write instead of a wrong model or address, from what the server offers."""
        names = self._models_at(self.url)
        if model is not None and names and model not in names:
            more = f" and {len(names) - LISTED_MODELS} more" if len(names) > LISTED_MODELS else ""
            return f"its models: {', '.join(names[:LISTED_MODELS])}{more} (--model)"
        if names is None:
            for url in useful_addresses(self.url):
                if self._models_at(url) is not None:
                    return f"the address is {url}, not {self.url}"
            return f"check the address {self.url}, which usually ends in /v1"
        return ""

    def _models_at(self, url: str) -> list[str] | None:
        """Return the models listed at an address of the same server; None if it lists none."""
        with contextlib.suppress(httpx2.HTTPError, ChatError, DataError):
            with self._http.stream("GET", f"{url}/models", timeout=PROBE_TIMEOUT) as response:
                text = self._read_text(response, MAX_RESPONSE_BYTES, time.monotonic() + PROBE_TIMEOUT)
            if response.is_success:
                return chat_replies.parse_models(mask_value(chat_replies.parse_answer(text, url), self._key))
        return None

    def _reduce(self, side: int) -> bool:
        """Halve the side of all further images; False if they are small already."""
        with self._lock:
            if self._max_side is not None and self._max_side < side:
                return True  # another thread has reduced it
            if side <= MIN_IMAGE_SIDE:
                return False
            self._max_side = max(MIN_IMAGE_SIDE, side // 2)
        text = "the server refuses images of %d pixels: they are sent with at most %d"
        logging.getLogger("lorakit").warning(text, side, self._max_side)
        return True

    def _request_in_dialect(self, body: dict[str, Any]) -> Any:
        """Request a completion without the parameters that the server refuses, learnt from its errors."""
        for _ in chat_dialects.OPTIONAL_PARAMETERS:
            refused, streams = self._refused, self._streams
            sent = chat_dialects.in_dialect(body, refused, streams)
            try:
                return self._request("POST", "chat/completions", sent)
            except ChatError as error:
                if error.code not in ("http_400", "http_422"):
                    raise
                parameter = chat_dialects.refused_parameter(error.message, sent)
                if parameter is None and (streams or not chat_dialects.WANTS_STREAM.search(error.message)):
                    raise
                self._refused |= {parameter} if parameter else frozenset()
                self._streams |= parameter is None
        sent = chat_dialects.in_dialect(body, self._refused, self._streams)
        return self._request("POST", "chat/completions", sent)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Return the JSON answer; try again, with growing delays, where that may help.

        A server that has never answered is tried twice: it is not running, or the address is wrong. One that
        loads its model is waited for.
        """
        delays, deadline = list(RETRY_DELAYS), time.monotonic() + LOADING_PATIENCE
        number = 0
        while True:
            number += 1
            try:
                return self._try_request(method, path, body)
            except RetryableError as failure:
                is_dead = failure.error.code == "unreachable" and not self._has_answered
                waits = failure.is_loading and time.monotonic() < deadline
                if (not delays and not waits) or (is_dead and number >= FIRST_TRIES):
                    raise failure.error from failure
                if waits and number == 1:
                    logging.getLogger("lorakit").warning("waiting: %s", failure.error.message)
                pause = 0.0 if waits else delays.pop(0)
                pause = pause if failure.delay is None else failure.delay
                if self._cancelled.wait(min(pause, MAX_RETRY_DELAY)):
                    raise failure.error from failure

    def _try_request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        deadline = time.monotonic() + self.timeout
        try:
            with self._http.stream(method, f"{self.url}/{path}", json=body) as response:
                self._has_answered = True
                if not response.is_success:
                    text = self._read_text(response, MAX_ERROR_BYTES, deadline)
                    raise chat_errors.status_error(response, text, self._key)
                text = self._read_text(response, MAX_RESPONSE_BYTES, deadline)
        except httpx2.TimeoutException as error:
            failure = ChatError("timeout", f"no answer within {self.timeout:g} s")
            raise RetryableError(failure) from error
        except httpx2.RequestError as error:
            raise transport_error(error, self.url, self._has_answered) from error
        try:
            value = mask_value(chat_replies.parse_answer(text, self.url), self._key)
        except DataError as error:
            title = chat_errors.page_title(text)
            detail = f"it is a web page, {title!r}" if title else error.message
            failure = ChatError(
                "invalid_response", f"the answer is not JSON: {detail}", misdirected=not self._has_completed
            )
            raise RetryableError(failure) from error
        chat_errors.raise_reported_error(value)
        return value

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


# ---- keys and images ---------------------------------------------------------------------------------------


def _check_key(key: str, variable: str) -> None:
    """Raise ConfigError for a key that no header can carry, without the key."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            "the key has a blank, a control character or a letter that is not ASCII",
            where=f"environment variable {variable}",
            remedy="set it to the key alone",
        )


def _reduced(image: Image.Image, max_side: int | None) -> Image.Image:
    if max_side is None or max(image.size) <= max_side:
        return image
    scale = max_side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _data_uri(image: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
