"""Errors of servers that speak OpenAI's chat protocol: what they say in one of many forms, and what may help.

Servers differ in the parameters that they take, in the place of an error (status, or an answer with status
200), in its form, and in the words for a model that is loading, unknown, or reads no images.
"""

from __future__ import annotations

import contextlib
import email.utils
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from lorakit.core.errors import DataError
from lorakit.core.progress import format_duration
from lorakit.core.secret_text import mask_value
from lorakit.core.strict_json import parse_json

RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
MAX_RETRY_DELAY = 300.0  # seconds that a server may ask to wait; more is an error of the whole command
LOADING_DELAY = 5.0  # seconds between tries while a server loads its model
_FATAL_STATUS = {
    401: "the server refuses the key",
    402: "the account has no credit",
    403: "the server refuses access",
    404: "the server has no such address or model",
    405: "the server has no such address",
}
_NO_CREDIT = re.compile(
    r"insufficient_quota|billing|no credit|credit balance|insufficient (?:credit|balance|fund)"
    r"|payment required",
    re.IGNORECASE,
)
_FILTERED = re.compile(
    r"content[_ ]?(?:filter|policy|management policy)|responsible ?ai ?policy|moderation|safety (?:system"
    r"|filter)"
    r"|data_inspection_failed|flagged|prohibited_content",
    re.IGNORECASE,
)
_WRONG_KEY = re.compile(
    r"(?:invalid|incorrect|wrong|missing) api[ _-]?key|api[ _-]?key (?:is )?(?:not valid|invalid)", re.I
)
_NO_VISION = re.compile(
    r"image input is not supported|(?:does|do) ?n[o']t support (?:image|vision|multi-?modal)|mmproj"
    r"|not (?:a )?(?:multi-?modal|vision)|image_url is only supported|no endpoints found that support image"
    r"|unknown variant .?image_url|at most 0 image|only (?:supports )?text (?:input|content)|(?:images?"
    r"|image_url)\W* "
    r"(?:is|are) not supported|missing data required for image input|support image input",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(
    r"(?:image|payload|entity|body|request|input|file)s?\b.{0,40}(?:too large|too big|exceeds?"
    r"|larger than|over the)"
    r"|(?:context|prompt|input)\b.{0,30}(?:length|size|window|tokens).{0,40}(?:exceed|maximum|too (?:long"
    r"|large))"
    r"|exceed.{0,30}(?:context|maximum (?:size|image))|maximum context length|too many image tokens"
    r"|out of memory",
    re.IGNORECASE,
)
_UNKNOWN_MODEL = re.compile(
    r"model\b.{0,100}(?:not (?:found|exist|available|a valid|loaded|recogni)|does not exist|is not valid"
    r"|unavailable)"
    r"|(?:unknown|invalid|no such|unsupported) model|model_not_found|not a valid model|no models? loaded",
    re.IGNORECASE,
)
_CANNOT_LOAD = re.compile(
    r"more system memory|failed to load|unable to load|insufficient memory", re.IGNORECASE
)
_LOADING = re.compile(r"\bloading\b|warming up|is starting|not (?:yet )?ready", re.IGNORECASE)
_PASSES = re.compile(
    r"overload|rate.?limit|timeout|timed out|try again|busy|unavailable|capacity", re.IGNORECASE
)
_WAIT = re.compile(
    r"(?:again|retry|retrydelay|wait)\W{1,4}(?:in|after|for)?\s*\"?(?:(\d+)\s*m(?:in\w*)?\s*)?(\d+(?:\.\d+)?)\s*s",
    re.IGNORECASE,
)


class ChatError(Exception):
    """A request without an answer. `code` is stable: timeout, unreachable, invalid_response, refused,
    reasoning_only, reported_error, no_vision, image_too_large, http_NNN.

    `fatal` means that every further request would fail in the same way (a wrong key, an unknown model);
    `misdirected` that address or model may be wrong.
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False, misdirected: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.fatal, self.misdirected = code, message, fatal, misdirected


class RetryableError(Exception):
    """An error after which another try may work, in `delay` seconds if the server names a time.

    A server that `is_loading` its model gets more time than one that fails.
    """

    def __init__(self, error: ChatError, delay: float | None = None, *, is_loading: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.delay, self.is_loading = error, delay, is_loading


@dataclass(frozen=True)
class ServerProblem:
    """The error that a server describes: one line for people, and all its words to classify it."""

    message: str
    words: str
    status: int = 0
    """A status within the description; 0 without one."""
    delay: float | None = None
    """Seconds to wait, if it names them."""


def read_problem(value: Any) -> ServerProblem | None:
    """Return the error in a JSON answer: OpenAI's form, FastAPI's, Gemini's list, OpenRouter's, plain"
    " text."""
    if isinstance(value, list):
        return next((problem for item in value if (problem := read_problem(item))), None)
    if not isinstance(value, dict):
        return None
    error = value.get("error") or value.get("errors") or value.get("detail") or value.get("error_description")
    if not error:
        error = value.get("message") if isinstance(value.get("message"), str) else None
    if not error:
        return None
    texts = _texts(error)
    if not texts:
        return None
    details = error if isinstance(error, dict) else {}
    codes = [str(details.get(key, "")) for key in ("code", "status", "type", "param")] + [
        str(value.get("type", ""))
    ]
    seconds = value.get("estimated_time") or details.get("estimated_time")
    words = " ".join([*codes, *texts])
    status = next((int(code) for code in re.findall(r"\b[45]\d\d\b", codes[0])), 0)
    delay = float(seconds) if isinstance(seconds, int | float) else wait_in_text(words)
    return ServerProblem(one_line("; ".join(dict.fromkeys(texts))), words, status, delay)


def _texts(error: Any) -> list[str]:
    """Return the sentences of an error, outermost first."""
    if isinstance(error, str):
        inner = None
        if error.lstrip()[:1] in ("{", "["):
            with contextlib.suppress(DataError):
                inner = parse_json(error, "the error")
        return [error] if inner is None else _texts(inner) or [error]
    if isinstance(error, list):
        return [text for item in error[:5] for text in _texts(item)]
    if not isinstance(error, dict):
        return []
    place = ".".join(str(part) for part in error.get("loc", ()) if part != "body") if "loc" in error else ""
    texts = [
        text for key in ("message", "msg", "detail", "error", "reason") for text in _texts(error.get(key))
    ]
    metadata = error.get("metadata")
    texts += _texts(metadata.get("raw")) if isinstance(metadata, dict) else []
    texts += (
        [text for item in error.get("details", ()) for text in _texts(item)]
        if isinstance(error.get("details"), list)
        else []
    )
    return [f"{place}: {text}" if place else text for text in texts] or [
        str(error[key]) for key in ("code", "type") if error.get(key)
    ]


def one_line(text: Any, limit: int = 200) -> str:
    """Return the first `limit` characters of a server's text, without line breaks and control characters."""
    words = " ".join(str(text).split())
    return "".join(letter for letter in words if letter.isprintable())[:limit]


def page_title(text: str) -> str:
    """Return the title of a web page; "" if the text is none."""
    if not re.match(r"\s*(?:<!doctype html|<html|<head|<\?xml)", text, re.IGNORECASE):
        return ""
    title = re.search(r"<(?:title|h1)[^<>]*>([^<>]*)<", text, re.IGNORECASE)
    return one_line(title[1] if title else "without a title", 80)


def status_error(response: httpx2.Response, body: str, key: str) -> Exception:
    """Return the error for a failed status, with the server's own words but without the key."""
    status, problem = response.status_code, None
    with contextlib.suppress(DataError):
        problem = read_problem(mask_value(parse_json(body, "the answer"), key))
    if problem is None:
        text = f"a web page, {page_title(body)!r}" if page_title(body) else one_line(body)
        problem = ServerProblem(text if text != "{}" else "", body)
    if response.is_redirect:
        address = response.headers.get("Location", "")
        message = f"the server sends to another address, {one_line(address)!r}: give that one if you trust it"
        return ChatError(f"http_{status}", message)
    delay = _retry_after(response.headers)
    return problem_error(status, problem, problem.delay if delay is None else delay)


def problem_error(status: int, problem: ServerProblem, delay: float | None = None) -> Exception:
    """Return the error for a problem: which failure it is, and whether another try may help."""
    code, words = f"http_{status}" if status else "reported_error", problem.words
    detail = f": {problem.message}" if problem.message else ""
    if status in (400, 403, 422, 451, 500, 0) and _FILTERED.search(words):
        return ChatError("refused", problem.message or "filtered by the server")
    if _NO_VISION.search(words):
        return ChatError("no_vision", f"the model reads no images{detail}", fatal=True)
    if status == 402 or (status in (0, 400, 403, 429) and _NO_CREDIT.search(words)):
        return ChatError(f"http_{status or 402}", f"{_FATAL_STATUS[402]}{detail}", fatal=True)
    if status == 413 or (status not in (401, 403, 404, 429) and _TOO_LARGE.search(words)):
        return ChatError("image_too_large", f"the server refuses the size of the request{detail}")
    if status in (404, 405) or (status in (0, 400, 422, 500) and _UNKNOWN_MODEL.search(words)):
        message = _FATAL_STATUS.get(status, "the server has no such model")
        return ChatError(code, f"{message}{detail}", fatal=True, misdirected=True)
    if status == 400 and _WRONG_KEY.search(words):
        return ChatError(code, f"{_FATAL_STATUS[401]}{detail}", fatal=True)
    if status in _FATAL_STATUS:
        return ChatError(code, f"{_FATAL_STATUS[status]}{detail}", fatal=True)
    said = (
        f"the server answered with status {status}{detail}"
        if status
        else f"the server reports an error{detail}"
    )
    if _CANNOT_LOAD.search(words):
        return ChatError(code, said, fatal=True)
    failure = ChatError(code, said)
    if delay is not None and delay > MAX_RETRY_DELAY:
        return ChatError(code, f"{said} (it asks to wait {format_duration(delay)})", fatal=True)
    if status in (0, 500, 503) and _LOADING.search(words):
        return RetryableError(failure, LOADING_DELAY if delay is None else delay, is_loading=True)
    if status in RETRYABLE_STATUS or (not status and _PASSES.search(words)):
        return RetryableError(failure, delay)
    return failure


def raise_reported_error(value: Any) -> None:
    """Raise the error that some servers report in an answer with status 200."""
    if isinstance(value, dict) and value.get("choices"):
        return
    is_error = isinstance(value, list) or (
        isinstance(value, dict) and {"error", "errors", "detail"} & value.keys()
    )
    problem = read_problem(value) if is_error else None
    if problem:
        raise problem_error(problem.status, problem, problem.delay)


def wait_in_text(text: str) -> float | None:
    """Return the seconds of "try again in 1m3.5s" and similar words."""
    match = _WAIT.search(text)
    return 60 * float(match[1] or 0) + float(match[2]) if match else None


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Return the delay in seconds that a Retry-After header asks for, as a number or a date (RFC 9110)."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["Retry-After-Ms"]) / 1000)
    header = headers.get("Retry-After")
    if not header:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None
