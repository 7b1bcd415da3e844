"""Subjects of an adapter: trigger words and class nouns, filled into prompts and replaced for scoring."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorakit.config.concepts import Concept

# DreamBooth's prompts for living subjects have clothes, those for things have surfaces.
LIVING_CLASS_NOUNS = {"animal", "baby", "bird", "boy", "cat", "child", "dog", "face", "girl", "horse"}
LIVING_CLASS_NOUNS |= {"kitten", "man", "person", "puppy", "woman"}


@dataclass(frozen=True)
class Subject:
    """A subject to fill into prompt lists such as DreamBooth's: "a {trigger} {class_noun} in snow"."""

    trigger: str | None = None
    class_noun: str | None = None


Subjects = Sequence[Subject]


def is_living(class_noun: str) -> bool:
    """Return True for the class noun of a person or an animal."""
    return class_noun.split()[-1].lower() in LIVING_CLASS_NOUNS


def concept_subjects(concepts: Iterable[Concept]) -> tuple[Subject, ...]:
    """Return the subjects that the concepts of a recipe name, each once."""
    named = (Subject(concept.trigger, concept.class_noun) for concept in concepts)
    return tuple(dict.fromkeys(subject for subject in named if subject != Subject()))


def subject_triggers(subjects: Subjects) -> tuple[str, ...]:
    """Return the trigger words of the subjects, each once."""
    return tuple(dict.fromkeys(subject.trigger for subject in subjects if subject.trigger))


def replace_triggers(text: str, subjects: Subjects) -> str:
    """Return the text with class nouns instead of triggers, which scoring models do not know."""
    named = {s.trigger.casefold(): s for s in subjects if s.trigger and s.class_noun}
    if not named:
        return text
    longest_first = sorted(named.values(), key=lambda s: len(s.trigger or ""), reverse=True)
    # one pattern for all: a class noun that was filled in is not searched again
    pattern = "|".join(
        rf"(?<!\w)({re.escape(s.trigger or '')})(?:\s+{re.escape(s.class_noun or '')})?(?!\w)"
        for s in longest_first
    )

    def class_noun(match: re.Match[str]) -> str:
        return longest_first[(match.lastindex or 1) - 1].class_noun or ""

    return re.sub(pattern, class_noun, text, flags=re.IGNORECASE)
