"""Lines of a caption file: tags, captions of their own, or one caption in several lines.

Taggers write one tag a line; kohya's scripts and OneTrainer read one caption a line; editors and models break
one caption into lines and paragraphs. The lines themselves decide, and a note says what was decided.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Literal, get_args

from lorakit.core.errors import ConfigError

LineMode = Literal["auto", "join", "tags", "captions"]
LINE_MODES: tuple[str, ...] = get_args(LineMode)
JOINED, TAGS, CAPTIONS = "caption_lines_joined", "caption_lines_are_tags", "caption_lines_are_captions"
_MAX_TAG_WORDS = 5
_MIN_CAPTION_WORDS = 4
_WRAPPED_LENGTH = 40  # characters of a line from which a break may be that of an editor
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
_UNFINISHED = re.compile(
    r"(?:[,;:(–—-]|\b(?:a|an|the|and|or|of|in|on|with|at|to|by|for|from))$", re.IGNORECASE
)
_NEW_CAPTION = re.compile(r"(?:an?|the|this|photo|image|picture|close-up|portrait)\b", re.IGNORECASE)


def check_line_mode(mode: str) -> None:
    """Raise `ConfigError` for an unknown mode."""
    if mode not in LINE_MODES:
        raise ConfigError(
            f"{mode!r} is not a way to read lines",
            where="caption-lines",
            remedy=f"use {', '.join(LINE_MODES)}",
        )


def split_captions(text: str, name: str, mode: str = "auto") -> tuple[list[str], list[str]]:
    """Return the captions of a file `name` and a note if it has several lines.

    Tags are joined by commas, parts of one caption by spaces.
    """
    rows = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n")]
    lines = [line for line in rows if line]
    if len(lines) < 2:
        return [text], []
    chosen = _recognize(lines, has_paragraphs="" in rows) if mode == "auto" else mode
    if chosen == "tags":
        tags = [tag.rstrip(",").strip() for tag in lines]
        return [", ".join(filter(None, tags))], [f"{TAGS}: {len(lines)} lines of {name} joined by commas"]
    if chosen == "captions":
        return lines, [f"{CAPTIONS}: {len(lines)} lines of {name} are a caption each"]
    return [" ".join(lines)], [f"{JOINED}: {len(lines)} lines of {name} joined into one"]


def exported_captions(text: str, known: Sequence[str]) -> list[str]:
    """Return the lines of a file that are exactly the `known` captions, one a line; [] for any other.

    An export for sd-scripts doubles braces, which are alternatives there.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    single = [line.replace("{{", "{").replace("}}", "}") for line in lines]
    return next((texts for texts in (lines, single) if texts and sorted(texts) == sorted(known)), [])


def _recognize(lines: list[str], *, has_paragraphs: bool) -> LineMode:
    if all(_is_tag(line) for line in lines):
        return "tags"
    breaks = itertools.pairwise(lines)
    if has_paragraphs or any(_is_continued(line, following) for line, following in breaks):
        return "join"
    is_caption = all(len(line.split()) >= _MIN_CAPTION_WORDS for line in lines)
    return "captions" if is_caption else "join"


def _is_tag(line: str) -> bool:
    """Return True for a few words without the end of a sentence; a list of tags counts, too."""
    tags = [tag for tag in line.split(",") if tag.strip()]
    return not _SENTENCE_END.search(line) and all(len(tag.split()) <= _MAX_TAG_WORDS for tag in tags)


def _is_continued(line: str, following: str) -> bool:
    """Return True if a sentence goes on after the end of a line."""
    if _SENTENCE_END.search(line):
        return False
    if _UNFINISHED.search(line):
        return True
    is_new = _NEW_CAPTION.match(following) or following[:1].isupper() or not following[:1].isalpha()
    return len(line) >= _WRAPPED_LENGTH and not is_new
