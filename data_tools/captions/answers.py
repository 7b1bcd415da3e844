"""The description within a model's answer: without reasoning, chat markup, JSON, Markdown and introductions.

An answer is read by its structure, never by its words alone; what was removed becomes a note. An answer that
holds no description raises `UnusableAnswer` with the reason.
"""

from __future__ import annotations

import html
import re
from typing import Any

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
    "final",
    "summary",
    "captions",
    "descriptions",
)
_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|reason|analysis|reflection|scratchpad|internal)"
_OPEN = rf"(?:<{_NAMES}(?:\s[^<>]*)?>|\[THINK\]|◁think▷)"
_CLOSE = rf"(?:</{_NAMES}\s*>|\[/THINK\]|◁/think▷)"
_REASONING = re.compile(rf"{_OPEN}.*?{_CLOSE}", re.DOTALL | re.IGNORECASE)
_REASONING_START = re.compile(_OPEN, re.IGNORECASE)
_REASONING_END = re.compile(rf".*{_CLOSE}", re.DOTALL | re.IGNORECASE)
# OpenAI's harmony format, also where the special tokens were decoded away.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+).*?<\|message\|>", re.DOTALL)
_BARE_CHANNEL = re.compile(r"^analysis.*?assistant\s*final", re.DOTALL)
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|eot_id|end|endoftext|end_of_text|eom_id|return|user|im_start)\|>|<end_of_turn>|<eos>|</s>"
    r"|<｜end▁of▁sentence｜>"
)
_START_OF_TURN = re.compile(
    r"<\|(?:im_start|start_header_id|start)\|>\s*assistant\s*(?:<\|end_header_id\|>)?"
    r"|<start_of_turn>\s*model|\[/INST\]|<\|assistant\|>|^\s*(?:ASSISTANT|Assistant|assistant)\s*:",
    re.MULTILINE,
)
_TOKENS = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|<｜[^<>\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|<unused\d+>"
    r"|<loc_?\d+>|<(?:image|img|OD|CAPTION|DETAILED_CAPTION|MORE_DETAILED_CAPTION)>"
)
_TAG = re.compile(
    r"</?(?:p|br|b|i|em|strong|span|div|ul|ol|li|h[1-6]|caption|description|answer|final|output|response|result)"
    r"\s*/?>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[\w+-]*\s*\n?(.*?)(?:```|$)", re.DOTALL)
_LABEL = re.compile(
    r"^\W*(?:(?:final|image|training|detailed|short|suggested|best|the)\s+)*"
    r"(?:caption|description|answer|prompt|output|response|alt[ -]text)"
    r"\s*(?:\d+|[a-c])?\s*[*_`\"]*\s*[:：][*_`]*\s*",
    re.IGNORECASE,
)
_INTRODUCTION = re.compile(
    r"^(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|yes)[,.!]*\s*)?"
    r"(?:here(?:'s|’s| is| are)|this is|below is|the following is)\b[^.:：\n]{0,100}"
    r"\b(?:captions?|descriptions?|prompts?|text|options?|versions?)\b[^.:：\n]{0,80}[:：]\s*",
    re.IGNORECASE,
)
_AFFIRMATION = re.compile(
    r"^(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|no problem)[,.!]+\s+(?=\S)", re.IGNORECASE
)
_FIRST_OPTION = re.compile(
    r"^(?:option\s*)?(?:1|one)\s*[.):]\s+(.+?)(?=\n\s*(?:option\s*)?(?:2|two)\s*[.):]\s)",
    re.DOTALL | re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\s*(?:let me know (?:if|should)|would you like|feel free to|i hope (?:this|that) helps|"
    r"is there anything else)[^\n]*$",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "「": "」", "`": "`", "„": "“"}
_EMPHASIS = re.compile(
    r"(\*\*)(?=\S)(.+?)(?<=\S)\1|(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])", re.DOTALL
)
_LINE_MARK = re.compile(r"^\s*(?:#{1,6}\s+|[-*•]\s+|>\s+)", re.MULTILINE)
_UNFINISHED = "the answer ends within its reasoning (raise --max-tokens)"


class UnusableAnswer(Exception):
    """An answer without a description. `code` is stable: reasoning_only or invalid_response."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def extract_description(answer: str) -> tuple[str, list[str]]:
    """Return the description in an answer and the names of what was removed, such as `reasoning`."""
    removed: list[str] = []
    text = _without_reasoning(answer, removed)
    text = _without_chat_markup(text, removed)
    text = _without_code_and_json(text, removed)
    text = _without_markdown(text, removed)
    text = _without_introduction(text, removed)
    return text.strip(), list(dict.fromkeys(removed))


def _without_reasoning(text: str, removed: list[str]) -> str:
    """Remove reasoning between marks; one that is cut off leaves nothing."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        removed.append("reasoning")
        last = channels[-1]
        if last[1].lower() != "final":
            raise UnusableAnswer(
                "reasoning_only", "the answer ends within its reasoning (raise --max-tokens)"
            )
        return text[last.end() :]
    rest = _BARE_CHANNEL.sub("", _REASONING.sub("", text))
    if match := _REASONING_END.match(rest):  # the opening mark was part of the prompt
        rest = rest[match.end() :]
    if start := _REASONING_START.search(rest):
        rest = rest[: start.start()]
        if not rest.strip():
            raise UnusableAnswer(
                "reasoning_only", "the answer ends within its reasoning (raise --max-tokens)"
            )
    if rest != text:
        removed.append("reasoning")
        if not rest.strip():
            raise UnusableAnswer("reasoning_only", "the answer is reasoning alone (raise --max-tokens)")
    return rest


def _without_chat_markup(text: str, removed: list[str]) -> str:
    """Keep the assistant's turn, without the special tokens of chat templates and tags of HTML."""
    plain = text
    while starts := list(_START_OF_TURN.finditer(plain)):
        plain = plain[starts[-1].end() :].lstrip()
    if (end := _END_OF_TURN.search(plain)) and plain[: end.start()].strip():
        plain = plain[: end.start()]
    plain = _TAG.sub(" ", _TOKENS.sub(" ", plain))
    if re.search(r"&(?:amp|lt|gt|quot|nbsp|#\d+);", plain):
        plain = html.unescape(plain)
    if plain != text:
        removed.append("chat markup")
    return plain


def _without_code_and_json(text: str, removed: list[str]) -> str:
    """Return the caption in a JSON answer; the content of a code block."""
    candidate = text.strip()
    if match := _FENCE.search(candidate):
        removed.append("code block")
        candidate = match[1].strip() or candidate.replace("```", "").strip()
    if candidate[:1] not in ("{", "["):
        return candidate
    try:
        value = parse_json(
            " ".join(candidate.splitlines()), "the answer"
        )  # models break lines within strings
    except DataError:
        if candidate[0] == "{" and re.match(r'\{\s*["\']\w+["\']\s*:', candidate):
            message = "the answer is JSON that is cut off or damaged"
            raise UnusableAnswer("invalid_response", message) from None
        return candidate
    caption = _caption_in(value)
    if caption is None:
        keys = ", ".join(map(str, value))[:80] if isinstance(value, dict) else "none"
        raise UnusableAnswer("invalid_response", f"the answer is JSON without a caption (its keys: {keys})")
    removed.append("JSON")
    return caption


def _caption_in(value: Any) -> str | None:
    """Return the caption in a JSON value: a text, tags as a list, or what a known key holds."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            return ", ".join(value) if all(len(item.split()) <= 4 for item in value) else str(value[0])
        return next((text for item in value if (text := _caption_in(item))), None)
    if isinstance(value, dict):
        by_name = {str(key).casefold().replace(" ", "_"): item for key, item in value.items()}
        similar = [name for name in by_name if "caption" in name or "descri" in name]
        names = [*CAPTION_KEYS, *similar]
        nested = next((text for name in names if (text := _caption_in(by_name.get(name)))), None)
        return nested or (_caption_in(next(iter(value.values()))) if len(value) == 1 else None)
    return None


def _without_markdown(text: str, removed: list[str]) -> str:
    plain = _LINE_MARK.sub("", text)
    plain = _EMPHASIS.sub(lambda match: match[2] or match[3], plain)
    if plain != text:
        removed.append("Markdown")
    return plain


def _without_introduction(text: str, removed: list[str]) -> str:
    """Remove `Here is a caption:`, `Caption:`, quotes around the whole, closing offers, further options."""
    plain, before = text.strip(), ""
    while plain != before:
        before = plain
        for pattern in (_INTRODUCTION, _AFFIRMATION, _LABEL):
            shorter = pattern.sub("", plain, count=1).strip()
            plain = shorter or plain
        if match := _FIRST_OPTION.match(plain):
            plain = match[1].strip()
        plain = _CLOSING.sub("", plain).strip() or plain
        plain = _unquoted(plain)
    if plain != text.strip():
        removed.append("introduction")
    return plain


def _unquoted(text: str) -> str:
    """Return the text without quotes around the whole of it."""
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 2 and text.endswith(closing) and closing not in text[1:-1]:
        return text[1:-1].strip()
    return text
