"""Code blocks and JSON in an answer: the caption that they hold."""

from __future__ import annotations

import ast
import re
from typing import Any

from data_tools.captions.answers.unusable import UnusableAnswer
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json

CAPTION_KEYS = (
    "caption",
    "description",
    "text",
    "prompt",
    "answer",
    "response",
    "output",
    "result",
    "content",
    "message",
    "choices",
    "final",
    "summary",
    "captions",
    "descriptions",
    "arguments",
    "parameters",
    "input",
)
_FENCE = re.compile(r"(?:```|~~~)[\w+-]*[ \t]*\n?(.*?)(?:```|~~~|$)", re.DOTALL)
_OBJECT = re.compile(r"\{\s*(?:[\"'“][^\"'”\n]{1,80}[\"'”]\s*:|[A-Za-z_]\w*\s*:\s*[\"'])")
_FIELD = re.compile(
    r"[\"'“]?\b(?:caption|description|text|answer|output)[\"'”]?\s*:\s*\"((?:[^\"\\]|\\.)+)\"", re.IGNORECASE
)
_TRAILING_COMMA = re.compile(r",\s*(?=[}\]])")


def without_code_and_json(text: str, removed: list[str]) -> str:
    """Return the caption in a JSON answer; the content of a code block."""
    candidate = text.strip()
    if match := _FENCE.search(candidate):
        removed.append("code block")
        outside = candidate.replace("```", "").strip()
        before = candidate[: match.start()].strip()
        is_last_line = not match[1].strip() and bool(before)
        candidate = before if is_last_line else match[1].strip() or outside
    start = _OBJECT.search(candidate)
    if candidate[:1] == "[" and not (start and start.start() > 1):
        return _from_list(candidate, removed)
    if candidate in ("{}", "[]"):
        raise UnusableAnswer("invalid_response", "the answer is empty JSON")
    if not start:
        return candidate
    value = _parse(_balanced(candidate, start.start()))
    caption = caption_in(value) if value is not None else None
    if caption is None and (field := _FIELD.search(candidate)):
        caption = field[1]
    if caption is None:
        raise UnusableAnswer("invalid_response", _json_problem(value))
    removed.append("JSON")
    return caption


def caption_in(value: Any) -> str | None:
    """Return the caption in a JSON value: a text, tags as a list, or what a known key holds."""
    if isinstance(value, str):
        inner = _parse(value) if value.lstrip()[:1] == "{" else None
        return value if inner is None else caption_in(inner)
    if isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            return ", ".join(value) if all(len(item.split()) <= 4 for item in value) else str(value[0])
        return next((text for item in value if (text := caption_in(item))), None)
    if isinstance(value, dict):
        by_name = {str(key).casefold().replace(" ", "_"): item for key, item in value.items()}
        similar = [name for name in by_name if "caption" in name or "descri" in name]
        nested = next(
            (text for name in [*CAPTION_KEYS, *similar] if (text := caption_in(by_name.get(name)))), None
        )
        return nested or (caption_in(next(iter(value.values()))) if len(value) == 1 else None)
    return None


def _from_list(candidate: str, removed: list[str]) -> str:
    value = _parse(candidate)
    caption = caption_in(value) if isinstance(value, list) else None
    if caption is None:
        if value == [] or re.match(r"\[\s*[{\"]", candidate):
            raise UnusableAnswer("invalid_response", _json_problem(value))
        return candidate
    removed.append("JSON")
    return caption


def _json_problem(value: Any) -> str:
    if value is None:
        return "the answer is JSON that is cut off or damaged"
    if (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and {"arguments", "parameters"} & set(value)
    ):
        return f"the answer is a call of the tool {value['name'][:40]!r}, not a description"
    keys = ", ".join(map(str, value))[:80] if isinstance(value, dict) else "none"
    return f"the answer is JSON without a caption (its keys: {keys})"


def _parse(text: str) -> Any:
    """Return the value of a JSON text, or of a dictionary as Python prints it; None for anything else."""
    line = _TRAILING_COMMA.sub("", " ".join(text.splitlines()))  # models break lines within strings
    try:
        return parse_json(line, "the answer")
    except DataError:
        pass
    try:
        return ast.literal_eval(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _balanced(text: str, start: int) -> str:
    """Return the text from a brace to the one that closes it; to the end if none does."""
    depth, quote, escaped = 0, "", False
    for index in range(start, len(text)):
        letter = text[index]
        if quote:
            escaped, quote = letter == "\\" and not escaped, "" if letter == quote and not escaped else quote
        elif letter == '"':
            quote = letter
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            if depth == 0:
                return text[start : index + 1]
    return text[start:]
