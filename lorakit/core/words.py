"""Words and phrases in a text: captions, prompts, trigger words."""

from __future__ import annotations

import re


def has_word(text: str, word: str) -> bool:
    """Return True if a text contains a word or phrase, not as part of a longer word."""
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


MAX_TAG_WORDS = 4  # in the mean of a list of tags; sentences have longer parts between their commas
MAX_WORDS_OF_A_TAG = 10
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?:$|\s+[\"“(]?[A-ZÀ-Þ])")


def split_tags(text: str, separator: str = ",") -> list[str]:
    """Return the parts of a text between separators, without empty ones."""
    return [tag for part in text.split(separator) if (tag := part.strip())]


def is_tag_list(text: str, separator: str = ",") -> bool:
    """Return True for a text of several short parts between separators, and without the end of a sentence."""
    tags = split_tags(text, separator)
    if len(tags) < 2 or _SENTENCE_END.search(text):
        return False
    lengths = [len(tag.split()) for tag in tags]
    return sum(lengths) / len(lengths) <= MAX_TAG_WORDS and max(lengths) <= MAX_WORDS_OF_A_TAG
