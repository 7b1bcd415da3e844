"""Alternatives of a prompt's text for CLIP to choose from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lorakit.data.prompts import Prompt


def prompt_alternatives(prompts: Iterable[Prompt], words: Sequence[str]) -> dict[str, list[str]]:
    """Return by prompt id the `score_text` with its word of `words` replaced by each of them in turn.

    An empty word removes the word. A prompt with none or several of the words has no alternatives.
    """
    non_empty = [word for word in words if word]
    longest_first = sorted(non_empty, key=len, reverse=True)
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in longest_first))
    alternatives: dict[str, list[str]] = {}
    for prompt in prompts:
        matches = list(pattern.finditer(prompt.score_text))
        if non_empty and len(matches) == 1:
            head, tail = prompt.score_text[: matches[0].start()], prompt.score_text[matches[0].end() :]
            alternatives[prompt.id] = [_replace_word(head, word, tail) for word in words]
    return alternatives


def _replace_word(head: str, word: str, tail: str) -> str:
    """Return the text around another word with the article that fits it, since a wrong "an" gives it away."""
    rest = f"{word}{tail}" if word else tail.lstrip()
    n = "n" if rest[:1].lower() in tuple("aeiou") else ""
    return re.sub(r"\b([Aa])n? $", rf"\g<1>{n} ", head) + rest
