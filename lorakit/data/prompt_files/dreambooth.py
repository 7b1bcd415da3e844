"""DreamBooth's prompts_and_classes.txt: two lists with placeholders, for things and for the living."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorakit.core.errors import DataError
from lorakit.data.prompt_files.row import PromptRow, PromptText
from lorakit.data.subjects import Subject, is_living

_PROMPT = re.compile(r"""['"](.*\{0\}.*\{1\}.*)['"]\.format\(unique_token, *class_token\)""")


def is_dreambooth(source: PromptText) -> bool:
    """Return True if the text has a prompt with DreamBooth's placeholders."""
    return _PROMPT.search(source.text) is not None


def read_dreambooth(source: PromptText) -> Iterator[PromptRow]:
    """Yield the prompts for each subject."""
    named = [subject for subject in source.subjects if subject.class_noun]
    if not named:
        remedy = "name it, for example with --class-noun dog (and --trigger sks)"
        raise DataError("the prompts have placeholders for a subject", where=source.where, remedy=remedy)
    for subject in named:
        yield from _subject_rows(source.text, subject)


def _subject_rows(text: str, subject: Subject) -> Iterator[PromptRow]:
    """Yield one of the two lists of DreamBooth's file: the first is for things, the second for the living."""
    assert subject.class_noun
    list_number, own_list = 0, 2 if is_living(subject.class_noun) else 1
    for line, content in enumerate(text.split("\n"), 1):
        if "prompt_list" in content:
            list_number += 1
        match = _PROMPT.search(content)
        if match and list_number == own_list:
            prompt, score_text = (
                " ".join(match[1].format(token, subject.class_noun).split())
                for token in (subject.trigger or "", "")
            )
            yield PromptRow(f"line {line}", {"prompt": prompt, "score_text": score_text})
