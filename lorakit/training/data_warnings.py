"""Warnings about the captions of a run: what would train without an error, but not what the user means."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from lorakit.core import prompt_syntax
from lorakit.core.words import has_word
from lorakit.data.items import ConceptRecords


def data_warnings(concepts: Sequence[ConceptRecords]) -> list[str]:
    """Return a line for each problem of the captions: missing trigger words, and syntax of other tools."""
    return [warning for data in concepts for warning in _concept_warnings(data)]


def triggers_in_captions(triggers: Iterable[str], captions: Iterable[str]) -> tuple[str, ...]:
    """Return the trigger words that at least one caption has: only these can have been learned."""
    texts = list(captions)
    return tuple(trigger for trigger in triggers if any(has_word(text, trigger) for text in texts))


def _concept_warnings(data: ConceptRecords) -> Iterator[str]:
    folder = data.concept.folder
    if data.concept.trigger:
        yield from _trigger_warnings(data, data.concept.trigger)
    texts = [(record.file, caption.text) for record in data.records for caption in record.captions]
    for summary in prompt_syntax.summarize_syntax(texts):
        place = folder / summary.files[0]
        yield f"{summary.message} ({place}); `lorakit data check {folder}` names a remedy"
    if escaped := [file for file, text in texts if prompt_syntax.has_escapes(text)]:
        yield (
            rf"{len(escaped)} images have escaped parentheses such as \( in a caption,"
            f" {folder / escaped[0]}; `lorakit data caption {folder}` reads them as plain ones"
        )


def _trigger_warnings(data: ConceptRecords, trigger: str) -> Iterator[str]:
    folder = data.concept.folder
    without = [r.file for r in data.records if not all(has_word(c.text, trigger) for c in r.captions)]
    command = ["lorakit", "data", "caption", str(folder), "--caption-edit", f"trigger={trigger}"]
    if without and not triggers_in_captions([trigger], data.captions):
        yield (
            f"no caption of {folder} has the trigger {trigger!r}: it is not learned, and exports do not name"
            f" it; to add it: {shlex.join(command)}"
        )
    elif without:
        yield (
            f"the captions of {len(without)} of {len(data.records)} images of {folder} lack the trigger"
            f" {trigger!r}, such as {without[0]}; to add it: {shlex.join(command)}"
        )
