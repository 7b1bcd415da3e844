"""Answers of servers that speak OpenAI's chat protocol: one object, or server-sent events; text, or parts."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from lorakit.core.strict_json import parse_json
from lorakit.models.chat_errors import ChatError, one_line

_FILTER_REASONS = frozenset(
    {
        "content_filter",
        "safety",
        "image_safety",
        "recitation",
        "prohibited_content",
        "blocklist",
        "spii",
        "refusal",
    }
)
_LENGTH_REASONS = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
_TEXT_PARTS = frozenset({None, "text", "output_text"})


@dataclass(frozen=True)
class TokenLogprob:
    """A token that the answer could have started with, and its log probability."""

    token: str
    logprob: float


@dataclass(frozen=True)
class ChatReply:
    """An answer. `truncated` if it reached max_tokens; `first_token` if log probabilities were requested.

    `prompt_tokens` and `answer_tokens` are what the server counted, 0 if it does not say.
    """

    text: str
    truncated: bool = False
    first_token: tuple[TokenLogprob, ...] = ()
    prompt_tokens: int = 0
    answer_tokens: int = 0


def parse_models(value: Any) -> list[str]:
    """Return the names in a list of models. Raises `ChatError` for anything else."""
    try:
        return [one_line(model["id"]) for model in value["data"]]
    except (KeyError, TypeError) as error:
        raise ChatError("invalid_response", "the answer has no list of models", misdirected=True) from error


def is_event_stream(text: str) -> bool:
    """Return True for server-sent events."""
    return text.lstrip().startswith(("data:", "event:", ":", "id:", "retry:"))


def join_events(text: str) -> str:
    """Return the completion that server-sent events hold in pieces, as one answer. May raise DataError."""
    pieces: list[str] = []
    message: dict[str, Any] = {}
    finish_reason, usage, last = None, None, None
    for event in _event_data(text):
        last = parse_json(event, "an event of the answer")
        if not isinstance(last, dict) or last.get("error"):
            return json.dumps(last)
        usage = last.get("usage") or usage
        choice = (last.get("choices") or [{}])[0]
        delta = choice.get("delta") or choice.get("message") or {}
        pieces.append(text_of(delta.get("content")) or choice.get("text") or "")
        finish_reason = choice.get("finish_reason") or finish_reason
        for key in ("refusal", "reasoning_content", "reasoning", "thinking"):
            if isinstance(delta.get(key), str):
                message[key] = message.get(key, "") + delta[key]
    if last is None:
        return "{}"
    message["content"] = "".join(pieces)
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage})


def _event_data(text: str) -> list[str]:
    """Return the data of each event; the lines of one event belong together."""
    events: list[str] = []
    data: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").strip())
        elif not line.strip() and data:
            events.append("\n".join(data))
            data = []
    parts = [part for event in events for part in _separate(event)]
    return [part for part in parts if part not in ("", "[DONE]")]


def _separate(event: str) -> list[str]:
    """Return the lines of an event, as some servers leave out the empty line between events."""
    lines = event.split("\n")
    return lines if all(line[:1] in ("{", "[", "") for line in lines) else [event]


def parse_completion(value: Any, max_tokens: int = 0) -> ChatReply:
    """Parse a chat completion. A refusal, and an answer without text, raise `ChatError`."""
    choice, message = _choice_and_message(value)
    finish_reason = str(choice.get("finish_reason") or "").lower()
    refusal = message.get("refusal") or _part_text(message.get("content"), "refusal")
    if refusal or finish_reason in _FILTER_REASONS:
        raise ChatError("refused", one_line(refusal or "filtered by the server"))
    text = text_of(message.get("content"))
    if text is None:
        raise ChatError("invalid_response", "the answer's content is not text")
    if not text.strip():
        _raise_empty(message, finish_reason, max_tokens)
    usage = value.get("usage") if isinstance(value, dict) else None
    return ChatReply(
        text.strip(),
        finish_reason in _LENGTH_REASONS,
        _first_token(choice),
        _count(usage, "prompt_tokens", "input_tokens"),
        _count(usage, "completion_tokens", "output_tokens"),
    )


def _choice_and_message(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first choice and its message; of other forms of answers, what corresponds to them."""
    if isinstance(value, dict):
        choices = value.get("choices")
        feedback = value.get("prompt_feedback") or value.get("promptFeedback")
        if not choices and isinstance(feedback, dict):
            raise ChatError("refused", one_line(f"filtered by the server: {feedback}"))
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, dict) and choice.get("error"):
            raise ChatError("reported_error", f"the server reports an error: {one_line(choice['error'])}")
        if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
            return choice, choice["message"]
        if isinstance(choice, dict) and isinstance(choice.get("text"), str):  # of the older protocol
            return choice, {"content": choice["text"]}
        if choices is None and isinstance(value.get("message"), dict):  # Ollama's own protocol
            return {"finish_reason": value.get("done_reason")}, value["message"]
    raise ChatError("invalid_response", "the answer has no choices[0].message")


def text_of(content: Any) -> str | None:
    """Return the text of a message's content, also of parts; None if it is neither."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list) and all(isinstance(part, dict | str) for part in content):
        return "".join(part if isinstance(part, str) else _text_part(part) for part in content)
    return None


def _text_part(part: dict[str, Any]) -> str:
    text = part.get("text") if part.get("type") in _TEXT_PARTS else None
    return text if isinstance(text, str) else ""


def _part_text(content: Any, kind: str) -> str:
    parts = content if isinstance(content, list) else []
    return " ".join(
        str(part.get(kind, "")) for part in parts if isinstance(part, dict) and part.get("type") == kind
    )


def _raise_empty(message: dict[str, Any], finish_reason: str, max_tokens: int) -> None:
    """Raise the reason for an answer without text, if there is one."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        name = None
        with contextlib.suppress(KeyError, TypeError):
            name = calls[0]["function"]["name"]
        raise ChatError(
            "invalid_response", f"the model calls a tool ({one_line(name, 40)}) instead of answering"
        )
    names = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
    reasoning = any(message.get(name) for name in names) or bool(
        _part_kinds(message) & {"thinking", "reasoning"}
    )
    if reasoning or finish_reason in _LENGTH_REASONS:
        used = "the model used them for reasoning" if reasoning else "no text is among them"
        raise ChatError("reasoning_only", f"{max_tokens} tokens were not enough: {used} (raise --max-tokens)")


def _part_kinds(message: dict[str, Any]) -> set[str]:
    content = message.get("content")
    return (
        {str(part.get("type")) for part in content if isinstance(part, dict)}
        if isinstance(content, list)
        else set()
    )


def _count(usage: Any, *names: str) -> int:
    values = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _first_token(choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """Return the candidates for the first token, most likely first; () if the server does not return them."""
    try:
        candidates = choice["logprobs"]["content"][0]["top_logprobs"]
        return tuple(TokenLogprob(str(one["token"]), float(one["logprob"])) for one in candidates)
    except (KeyError, IndexError, TypeError, ValueError):
        return ()


def parse_answer(text: str, where: str) -> Any:
    """Return the JSON value of an answer, of one object or of events. Raises DataError."""
    return parse_json(join_events(text) if is_event_stream(text) else text, where)
