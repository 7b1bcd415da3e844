"""Answers that hold no description, with the reason: placeholders, error messages, pages, endless"
" repetition."""

from __future__ import annotations

import re

MAX_WORD_LENGTH = 60  # characters of a word in a script with spaces; more is encoded data
_REPEATED = re.compile(r"(?P<unit>\b\S.{0,118}?\S|\S)(?:[\s,.;:!?、。，]*(?P=unit)){3,}", re.DOTALL)
_MIN_REPEATED = 40  # characters that a loop takes; "ha ha ha ha" is a text within an image
_ANY_PLACEHOLDER = re.compile(
    r"\W*(?:n/?a|none|null|nil|nan|undefined|string|str|text|caption|description|todo|tbd|unknown|empty|test"
    r"|object object|lorem ipsum.*|no (?:caption|description)(?: available| provided)?"
    r"|(?:insert|your|write|add|enter|put)\b.{0,30}\b(?:caption|description|text|answer)\b.{0,20}"
    r"|(?:caption|description|text) (?:goes )?here"
    r"|(?:content|image|text|response|message|redacted|removed|filtered|blocked|censored|deleted)\s*"
    r"(?:was |has been )?(?:removed|filtered|redacted|blocked|unavailable|censored|deleted)?)\W*",
    re.IGNORECASE,
)
_ERROR = re.compile(
    r"\W*(?:error\b\s*[:\]\d]|\w*(?:error|exception)\s*:|traceback \(most recent|internal server error"
    r"|bad gateway"
    r"|service unavailable|gateway time-?out|too many requests|rate limit (?:exceeded|reached)"
    r"|unauthorized\W*$"
    r"|request timed out|an error (?:has )?occurred|something went wrong|cuda out of memory)",
    re.IGNORECASE,
)
_PAGE = re.compile(r"\s*(?:<!doctype html|<html\b)", re.IGNORECASE)
_TITLE = re.compile(r"<(?:title|h1)\b[^<>]*>\s*([^<>]*?)\s*</", re.IGNORECASE)
_ADDRESS = re.compile(r"\W*(?:https?://|data:\w+/)\S+\W*", re.IGNORECASE)
_MARKUP = re.compile(
    r"<\|[^<>\n]{0,60}>|<[^<>\n]{0,60}\|>|<｜|｜>|</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>(?=.*</)"
    r"|</[A-Za-z][\w:.-]*>|```"
    r"|\[/?(?:INST|THINK|SYS)\]|◁/?think▷|^\s*#{2,4} (?:Response|Instruction|Assistant)\b",
    re.DOTALL | re.MULTILINE,
)


class UnusableAnswer(Exception):
    """An answer without a description. `code` is stable: reasoning_only, invalid_response or repetition."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def check_page(answer: str) -> None:
    """Raise `UnusableAnswer` for a web page with a title, such as the error page of a gateway."""
    if _PAGE.match(answer) and (title := _TITLE.search(answer)):
        raise UnusableAnswer("invalid_response", f"the answer is a web page: {title[1][:80]!r}")


def check_description(text: str) -> None:
    """Raise `UnusableAnswer` for a text that describes nothing."""
    problem = None
    if not text:
        problem = "the answer is markup alone"
    elif not any(letter.isalpha() for letter in text):
        problem = "the answer has no words"
    elif _ANY_PLACEHOLDER.fullmatch(text):
        problem = "the answer is a placeholder"
    elif _ERROR.match(text):
        problem = "the answer is an error message"
    elif _ADDRESS.fullmatch(text):
        problem = "the answer is an address"
    elif any(len(word) > MAX_WORD_LENGTH and word.isascii() for word in text.split()):
        problem = "the answer holds encoded data"
    elif markup := find_markup(text):
        problem = f"the answer holds markup that is not known: {markup!r}"
    if problem:
        quoted = f": {text[:80]!r}" if text and not problem.endswith("'") else ""
        raise UnusableAnswer("invalid_response", problem + quoted)


def find_markup(text: str) -> str | None:
    """Return the first markup of a chat template, HTML or code in a caption; None without any."""
    match = _MARKUP.search(text)
    return match[0][:40] if match else None


def without_repetition(text: str) -> str:
    """Return the text without sentences or tags that follow themselves at least three times.

    A loop within a sentence is an `UnusableAnswer`: the model did not end.
    """

    def shorten(match: re.Match[str]) -> str:
        if len(match[0]) < _MIN_REPEATED:
            return match[0]
        unit = match["unit"]
        starts_sentence = (
            not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in ".!?,;。，、"
        )
        follows_end = match[0][len(unit) :].lstrip(" ")[:1] in tuple(".!?,;。，、") or unit[-1] in ".!?。"
        if not (starts_sentence and follows_end):
            raise UnusableAnswer("repetition", f"the answer repeats itself without end: {unit[:60]!r}")
        return unit

    return _REPEATED.sub(shorten, text)
