"""Infotext of A1111, Forge and others: a prompt, `Negative prompt: ...`, and `Steps: 20, Sampler: ...`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json
from lorakit.data.prompt_files.keys import one_value
from lorakit.data.prompt_files.row import PromptRow, PromptText, Values, is_comment

_NEGATIVE = "negative prompt:"
_SETTINGS = re.compile(r"\s*Steps:\s*\d+\s*(?:,|$)", re.IGNORECASE)
_SETTING = re.compile(r'\s*(\w[\w /-]*):\s*("(?:\\.|[^\\"])*"|\{[^{}]*\}|[^,]*)(?:,|$)')
_KEYS = {
    "steps": "num_inference_steps",
    "cfg scale": "guidance_scale",
    "distilled cfg scale": "guidance_scale",
    "seed": "seeds",
    "size": "size",
}


@dataclass(frozen=True)
class Infotext:
    """The text that an image was generated from, as A1111 writes it; `settings` by name in lower case."""

    prompt: str
    negative: str
    settings: dict[str, str]

    def values(self, where: str) -> tuple[Values, tuple[str, ...]]:
        """Return the values of a prompt, and the names of the settings that have no equal."""
        collected: dict[str, list[Any]] = {}
        for name, text in self.settings.items():
            if name in _KEYS:
                collected.setdefault(_KEYS[name], []).append(text)
        unused = tuple(name for name in self.settings if name not in _KEYS)
        values = {key: one_value(key, texts, where) for key, texts in collected.items()}
        return {"prompt": self.prompt, "negative": self.negative, **values}, unused


def parse_infotext(text: str) -> Infotext | None:
    """Return the parts of one infotext; None for text without a negative prompt or settings."""
    prompt: list[str] = []
    negative: list[str] | None = None
    settings: dict[str, str] | None = None
    for line in text.strip().split("\n"):
        if settings is not None:
            break  # dynamic prompts write their template after the settings
        if line.strip().lower().startswith(_NEGATIVE) and negative is None:
            negative = [line.strip()[len(_NEGATIVE) :].strip()]
        elif _SETTINGS.match(line):
            settings = _parse_settings(line)
        else:
            (prompt if negative is None else negative).append(line.strip())
    if negative is None and settings is None:
        return None
    return Infotext(_joined(prompt), _joined(negative or []), settings or {})


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _parse_settings(line: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for name, value in _SETTING.findall(line):
        settings.setdefault(name.strip().lower(), _unquoted(value.strip()))
    return settings


def _unquoted(value: str) -> str:
    if len(value) < 2 or not value.startswith('"'):
        return value
    try:
        return str(parse_json(value, "infotext"))
    except DataError:
        return value.strip('"')


# ---- a file of them ----------------------------------------------------------------------------------------


def is_infotext(source: PromptText) -> bool:
    """Return True if a line begins as a negative prompt or as the settings of A1111."""
    return any(
        line.lower().startswith(_NEGATIVE) or (_SETTINGS.match(line) and len(_SETTING.findall(line)) > 2)
        for _, line in source.lines()
    )


def read_infotext(source: PromptText) -> Iterator[PromptRow]:
    """Yield the prompts of blocks: each ends with its settings, or with an empty line."""
    for number, block in _blocks(source.text):
        place = f"line {number}"
        infotext = parse_infotext(block) or Infotext(_joined(block.split("\n")), "", {})
        values, unused = infotext.values(f"{source.where}, {place}")
        yield PromptRow(place, values, unused)


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of the first line, text) of each block."""
    lines = text.split("\n")
    followers, nearest = [""] * len(lines), ""
    for index in range(len(lines) - 1, -1, -1):
        followers[index] = nearest  # the next line with text
        nearest = lines[index].strip() or nearest
    block: list[str] = []
    start = 0
    for number, line in enumerate(lines, 1):
        if not block and (not line.strip() or is_comment(line)):
            continue
        start = start if block else number
        if line.strip():
            block.append(line)
        following = followers[number - 1]
        continues = following.lower().startswith(_NEGATIVE) or _SETTINGS.match(following) is not None
        if _SETTINGS.match(line) or (not line.strip() and not continues):
            yield start, "\n".join(block)
            block = []
    if block:
        yield start, "\n".join(block)
