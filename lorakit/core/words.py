"""Words and phrases in a text: captions, prompts, trigger words."""

from __future__ import annotations

import re


def has_word(text: str, word: str) -> bool:
    """Return True if a text contains a word or phrase, not as part of a longer word."""
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))
