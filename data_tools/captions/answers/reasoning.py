"""Reasoning removed from an answer: between marks, in channels, under a label, or spoken."""

from __future__ import annotations

import re

from data_tools.captions.answers.unusable import UnusableAnswer

_NAMES = (
    r"(?:[\w.]{1,20}[:_-])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad"
    r"|internal|cot"
    r"|thought_process|chain_of_thought|inner_monologue)"
)
_TOKEN_NAMES = r"(?:thinking|thoughts?|think|reasoning)"
_OPEN = (
    rf"(?:<{_NAMES}(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|(?:start_|begin_of_|begin_)?{_TOKEN_NAMES}\|>"
    r"|<\|channel>\s*(?:thought|thinking|analysis)\b|^[ \t]*Thinking\.\.\.[ \t]*$)"
)
_CLOSE = (
    rf"(?:</{_NAMES}\s*>|\[/THINK\]|◁/think▷|<\|(?:end_|end_of_|/){_TOKEN_NAMES}\|>|<channel\|>"
    r"|^[ \t]*\.\.\.[ \t]*done thinking\.?)"
)
_FLAGS = re.DOTALL | re.IGNORECASE | re.MULTILINE
_BETWEEN = re.compile(rf"{_OPEN}.*?{_CLOSE}", _FLAGS)
_START = re.compile(_OPEN, _FLAGS)
_END = re.compile(rf"\A.*{_CLOSE}", _FLAGS)
# OpenAI's harmony format, also where the special tokens were decoded away.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+).*?<\|message\|>", re.DOTALL)
_BARE_CHANNEL = re.compile(r"\A\s*(?:analysis|commentary)(?=[A-Z]\S*\s|\s*\n).*?assistant\s*final", re.DOTALL)
_BARE_START = re.compile(r"\A\s*(?:analysis|commentary)(?=[A-Z][a-z']*\s)")
_ANSWER_LABEL = re.compile(
    r"^\W*(?:here is |here's )?(?:so,? )?(?:the |my |your )?(?:(?:final|image|training|resulting|finished"
    r"|best)\s+)*"
    r"(?:answer|caption|description|output|response|prompt)\W*[:：]\W*?(?=[^\s*_])[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_REASONING_LABEL = re.compile(
    r"\A\W*(?:here is |here's )?(?:the |my )?(?:reasoning|analysis|thought process|thinking process"
    r"|chain[- ]of[- ]thought"
    r"|thinking|thoughts?|rationale|step[- ]by[- ]step(?: analysis| reasoning)?)\W*(?:[:：]|\n)",
    re.IGNORECASE,
)
_SPOKEN = re.compile(
    r"\A\W*(?:(?:okay|ok|alright|hmm+|so|well|got it|right|first|now|wait)\b[\s,.!]*)*(?:"
    r"(?:the )?user(?:'s)?\b\s+(?:wants?|is asking|asks?|asked|has|provided|uploaded|needs?|requests?"
    r"|request|would like)\b"
    r"|(?:i|we)(?:['’]ll| will)?\s+(?:need to|have to|should|must|want to|(?:am|are) going to|(?:am"
    r"|are) asked to|start)\b"
    r"|let(?:['’]s| me| us)\s+(?:analy|look|think|see|break|tackle|describe|examine|start|craft|write"
    r"|go through|observe"
    r"|figure|consider|try|begin|work|carefully|create|produce|compose)"
    r"|(?:my|the) task is)",
    re.IGNORECASE,
)
_CUT_OFF = "the answer ends within its reasoning (raise --max-tokens)"


def without_reasoning(text: str, removed: list[str]) -> str:
    """Remove reasoning between marks or under a label; one that is cut off is an `UnusableAnswer`."""
    rest = _after_channels(_BETWEEN.sub("", text))
    if match := _END.match(rest):  # the opening mark was part of the prompt
        rest = rest[match.end() :]
    if start := _START.search(rest):
        rest = rest[: start.start()]
        if not rest.strip():
            raise UnusableAnswer("reasoning_only", _CUT_OFF)
    rest = _after_label(rest, _REASONING_LABEL)
    if rest != text:
        removed.append("reasoning")
        if not rest.strip():
            raise UnusableAnswer("reasoning_only", "the answer is reasoning alone (raise --max-tokens)")
    return rest


def without_spoken_reasoning(text: str, removed: list[str]) -> str:
    """Return what follows reasoning such as "Okay, the user wants": the text under its last answer label."""
    rest = _after_label(text, _SPOKEN)
    if rest != text:
        removed.append("reasoning")
    return rest


def _after_channels(text: str) -> str:
    if channels := list(_CHANNEL.finditer(text)):
        last = channels[-1]
        if last[1].lower() != "final":
            raise UnusableAnswer("reasoning_only", _CUT_OFF)
        return text[last.end() :]
    rest = _BARE_CHANNEL.sub("", text)
    if _BARE_START.match(rest):
        raise UnusableAnswer("reasoning_only", _CUT_OFF)
    return rest


def _after_label(text: str, begins_reasoning: re.Pattern[str]) -> str:
    start = begins_reasoning.match(text)
    if not start:
        return text
    labels = [label for label in _ANSWER_LABEL.finditer(text) if label.start() >= start.end() - 1]
    if not labels:
        message = f"the answer is reasoning, not a description: {' '.join(text.split())[:60]!r}"
        raise UnusableAnswer("reasoning_only", message)
    return text[labels[-1].end() :]
