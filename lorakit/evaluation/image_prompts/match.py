"""The prompt of a prompt file that a text or a name belongs to: equal text, a part of it, or words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.core.prompt_syntax import plain_words
from lorakit.data.prompts import Prompt

MIN_PREFIX_WORDS = 3
MIN_PREFIX_LETTERS = 12
_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """The prompt of an image. `is_exact` is False if only a part of the text or name fits."""

    prompt: Prompt | None
    is_exact: bool = True
    reason: str = ""
    """Reason for no prompt."""


class PromptIndex:
    """The prompts of a file, matching by id, position, text, and words in names."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = list(prompts)
        self.by_id = {prompt.id: prompt for prompt in prompts}
        self._by_text: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            for text in dict.fromkeys((normal_text(prompt.prompt), normal_text(prompt.score_text))):
                self._by_text.setdefault(text, []).append(prompt)

    def at(self, index: int) -> Match:
        """Return the prompt at a position from 0."""
        if 0 <= index < len(self.prompts):
            return Match(self.prompts[index])
        return Match(None, reason=f"index {index}, and the file has the prompts 0 to {len(self.prompts) - 1}")

    def of_text(self, text: str) -> Match:
        """Return the prompt with a text, else the longest one that the text contains."""
        target = normal_text(text)
        if same := self._by_text.get(target):
            return _only(same, True)
        parts = [known for known in self._by_text if known and f" {known} " in f" {target} "]
        if not parts:
            return Match(None, reason=f"the prompt file has no prompt {_short(text)!r}")
        longest = max(map(len, parts))
        return _only([p for known in parts if len(known) == longest for p in self._by_text[known]], False)

    def of_words(self, words: str) -> Match:
        """Return the prompt whose words, or first words, a name has."""
        name = normal_text(_UUID.sub(" ", words).replace("_", " "))
        inside = [known for known in self._by_text if known and f" {known} " in f" {name} "]
        if inside:
            longest = max(map(len, inside))
            matching = [p for known in inside if len(known) == longest for p in self._by_text[known]]
            return _only(matching, inside == [name])
        lengths = {known: _prefix_length(name, known) for known in self._by_text}
        best = max(lengths.values(), default=0)
        if best < MIN_PREFIX_LETTERS:
            return Match(None, reason="no prompt has the words of its name")
        return _only([p for known, n in lengths.items() if n == best for p in self._by_text[known]], False)


def normal_text(text: str) -> str:
    """Return the words of a text in lower case, without punctuation and the syntax of other tools."""
    plain = unicodedata.normalize("NFKC", plain_words(text)).casefold()
    return " ".join(re.findall(r"\w+", plain))


def _prefix_length(name: str, known: str) -> int:
    """Return the number of letters of a prompt's beginning that a name ends with, or has before numbers."""
    words = re.sub(r"(?: \d+)+$", "", name).split()
    for start in range(len(words) - MIN_PREFIX_WORDS + 1):
        part = " ".join(words[start:])
        if known.startswith(part):
            return len(part)
    return 0


def _only(prompts: Sequence[Prompt], is_exact: bool) -> Match:
    unique = list({prompt.id: prompt for prompt in prompts}.values())
    if len(unique) == 1:
        return Match(unique[0], is_exact)
    ids = ", ".join(prompt.id for prompt in unique[:4])
    return Match(None, reason=f"it fits several prompts: {ids}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
