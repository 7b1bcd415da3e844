"""Alternatives of a prompt's text among which CLIP is asked to choose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lorakit.data.prompts import Prompt


def prompt_alternatives(prompts: Iterable[Prompt], words: Sequence[str]) -> dict[str, list[str]]:
    """By prompt id: each `score_text` with its one word or phrase of `words` swapped for each.

    An empty word leaves the word out. Prompts with none or several of the words are not asked.
    """
    named = [word for word in words if word]
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in sorted(named, key=len, reverse=True)))
    found: dict[str, list[str]] = {}
    for prompt in prompts:
        hits = list(pattern.finditer(prompt.score_text))
        if named and len(hits) == 1:
            head, tail = prompt.score_text[: hits[0].start()], prompt.score_text[hits[0].end() :]
            found[prompt.id] = [_replace_word(head, word, tail) for word in words]
    return found


def _replace_word(head: str, word: str, tail: str) -> str:
    """The text around another word, its article fitted: a wrong "an" would give a wrong option away."""
    rest = f"{word}{tail}" if word else tail.lstrip()
    n = "n" if rest[:1].lower() in tuple("aeiou") else ""
    return re.sub(r"\b([Aa])n? $", rf"\g<1>{n} ", head) + rest
