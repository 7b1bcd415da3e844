"""Long texts in parts that a text encoder can read: its sentences, and long sentences at their commas.

A CLIP reads 77 tokens; of a longer caption it sees the beginning only, so that captions which differ after it
score alike. Each part is therefore scored on its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

Fits = Callable[[str], bool]
_SENTENCE_ENDS = re.compile(r"(?<=[.!?;。！？])\s+|\n+")
_CLAUSE_ENDS = re.compile(r"(?<=[,:，、])\s*")


def split_text(text: str, fits: Fits) -> list[str]:
    """Return the text alone if it fits, else its sentences in order; long sentences are split at commas.

    A clause that does not fit is returned whole.
    """
    if fits(text):
        return [text]
    return [part for sentence in _pieces(_SENTENCE_ENDS, text) for part in _split_sentence(sentence, fits)]


def _split_sentence(sentence: str, fits: Fits) -> Iterator[str]:
    """Yield as many clauses at a time as fit, for a list of tags would otherwise become single words."""
    if fits(sentence):
        yield sentence
        return
    part = ""
    for clause in _pieces(_CLAUSE_ENDS, sentence):
        longer = f"{part} {clause}" if part else clause
        if part and not fits(longer):
            yield part
            longer = clause
        part = longer
    if part:
        yield part


def _pieces(ends: re.Pattern[str], text: str) -> list[str]:
    return [piece.strip() for piece in ends.split(text) if piece.strip()]
