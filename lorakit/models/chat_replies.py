"""Answers of servers that speak OpenAI's chat protocol in one of its dialects, and their errors.

Servers differ in the parameters that they take, in the place of an error (status, or an answer with status
200), and in the form of an answer (one object, or server-sent events).
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from lorakit.core.errors import DataError
from lorakit.core.secret_text import mask_value
from lorakit.core.strict_json import parse_json

RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_FATAL_STATUS = {
    401: "the server refuses the key",
    402: "the account has no credit",
    403: "the server refuses access",
    404: "the server has no such address or model",
}
_NO_CREDIT = re.compile(
    r"insufficient_quota|billing|no credit|credit balance|payment required", re.IGNORECASE
)
# Optional parameters, and the words by which a server refuses one. A required one is replaced, not left out.
OPTIONAL_PARAMETERS = (
    "top_logprobs",
    "logprobs",
    "temperature",
    "seed",
    "max_completion_tokens",
    "max_tokens",
)
_OTHER_NAME = {"max_tokens": "max_completion_tokens"}
_REFUSES_PARAMETER = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|not allowed|not permitted|extra|unexpected|invalid"
    r"|deprecated|does not (?:take|accept|exist)|only the default",
    re.IGNORECASE,
)
WANTS_STREAM = re.compile(
    r"stream\W+(?:must|should|needs|has) (?:to )?be|only supports? stream|stream.{0,20}required",
    re.IGNORECASE,
)
_PASSES = re.compile(r"overload|rate.?limit|timeout|try again|busy|loading", re.IGNORECASE)


class ChatError(Exception):
    """A request without an answer. `code` is stable: timeout, unreachable, invalid_response, refused,
    reasoning_only, reported_error, http_NNN.

    `fatal` means that every further request would fail in the same way (a wrong key, an unknown model).
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.fatal = code, message, fatal


class RetryableError(Exception):
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


def status_error(response: httpx2.Response, body: str, key: str) -> Exception:
    """Return the error for a failed status, with the server's own words but without the key."""
    status, detail = response.status_code, ""
    with contextlib.suppress(DataError, KeyError, TypeError):
        error = mask_value(parse_json(body, "the answer"), key)["error"]
        text = error["message"] if isinstance(error, dict) else error
        detail = f": {_one_line(text)}"
    if status in _FATAL_STATUS:
        return ChatError(f"http_{status}", f"{_FATAL_STATUS[status]}{detail}", fatal=True)
    if status == 429 and _NO_CREDIT.search(body):
        return ChatError(f"http_{status}", f"{_FATAL_STATUS[402]}{detail}", fatal=True)
    failure = ChatError(f"http_{status}", f"the server answered with status {status}{detail}")
    if status in RETRYABLE_STATUS:
        return RetryableError(failure, _retry_after(response.headers.get("Retry-After")))
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


def parse_models(value: Any) -> list[str]:
    try:
        return [_one_line(model["id"]) for model in value["data"]]
    except (KeyError, TypeError) as error:
        raise ChatError("invalid_response", "the answer has no list of models") from error


def in_dialect(body: dict[str, Any], refused: frozenset[str], streams: bool) -> dict[str, Any]:
    """Return the body of a request without refused parameters, or with another name for them."""
    adapted: dict[str, Any] = {}
    for name, value in body.items():
        chosen: str | None = name
        while chosen in refused:
            chosen = _OTHER_NAME.get(chosen)
        if chosen:
            adapted[chosen] = value
    return adapted | ({"stream": True} if streams else {})


def refused_parameter(message: str, body: dict[str, Any]) -> str | None:
    """Return the optional parameter of a request that an error refuses; None for another error."""
    if not _REFUSES_PARAMETER.search(message):
        return None
    named = [name for name in OPTIONAL_PARAMETERS if name in body]
    return next((name for name in named if re.search(rf"(?<![\w]){name}(?![\w])", message)), None)


def join_events(text: str) -> str:
    """Return the completion that server-sent events hold in pieces, as one answer."""
    content: list[str] = []
    message: dict[str, str] = {}
    finish_reason, last = None, {}
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data in ("", "[DONE]"):
            continue
        last = parse_json(data, "an event of the answer")
        choice = (last.get("choices") or [{}])[0] if isinstance(last, dict) else {}
        delta = choice.get("delta") or choice.get("message") or {}
        content.append(delta.get("content") or "")
        finish_reason = choice.get("finish_reason") or finish_reason
        for key in ("refusal", "reasoning_content"):
            if delta.get(key):
                message[key] = message.get(key, "") + delta[key]
    if not content or (isinstance(last, dict) and "error" in last):
        return json.dumps(last)
    message["content"] = "".join(content)
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}]})


def raise_reported_error(value: Any) -> None:
    """Raise the error that some servers report in an answer with status 200."""
    error = value.get("error") if isinstance(value, dict) and not value.get("choices") else None
    if not error:
        return
    details = error if isinstance(error, dict) else {"message": error}
    words = " ".join(str(details.get(key, "")) for key in ("code", "type", "message"))
    message = f"the server reports an error: {_one_line(details.get('message') or words)}"
    status = next((int(code) for code in re.findall(r"\b[45]\d\d\b", str(details.get("code", "")))), 0)
    if _NO_CREDIT.search(words):
        status = 402
    if status in _FATAL_STATUS:
        raise ChatError(f"http_{status}", f"{_FATAL_STATUS[status]}; {message}", fatal=True)
    failure = ChatError("reported_error", message)
    if status in RETRYABLE_STATUS or re.search(
        r"overload|rate.?limit|timeout|try again|busy|loading", words, re.I
    ):
        raise RetryableError(failure)
    raise failure


def parse_completion(value: Any, max_tokens: int = 0) -> ChatReply:
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
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not text.strip() and (reasoning or finish_reason == "length"):
        used = "the model used them for reasoning" if reasoning else "no text is among them"
        raise ChatError("reasoning_only", f"{max_tokens} tokens were not enough: {used} (raise --max-tokens)")
    return ChatReply(text.strip(), finish_reason == "length", _first_token(choice))


def _first_token(choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """Return the candidates for the first token, most likely first; () if the server does not return them."""
    try:
        candidates = choice["logprobs"]["content"][0]["top_logprobs"]
        return tuple(TokenLogprob(str(one["token"]), float(one["logprob"])) for one in candidates)
    except (KeyError, IndexError, TypeError, ValueError):
        return ()
