"""Warnings about concepts that contradict each other, and about captions of an earlier preparation."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence

from lorakit.core.words import has_word
from lorakit.data.items import ConceptRecords
from lorakit.training.held_out import listed


def concept_warnings(concepts: Sequence[ConceptRecords]) -> Iterator[str]:
    """Yield a line for each problem of the concepts' images and captions."""
    yield from _shared_images(concepts)
    for data in concepts:
        yield from _captions_of_others(data, concepts)
        yield from _earlier_templates(data)


def _shared_images(concepts: Sequence[ConceptRecords]) -> Iterator[str]:
    """Warn of images that are in two folders with different triggers."""
    by_content: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    for data in concepts:
        for record in data.records:
            name = f"{data.concept.folder.name}/{record.file}"
            by_content[record.content_hash].append((data.concept.trigger, name))
    shared = [group for group in by_content.values() if len({trigger for trigger, _ in group}) > 1]
    if shared:
        names = listed([" = ".join(name for _, name in group) for group in shared])
        yield (
            f"{len(shared)} images are in folders with different trigger words, so that each word learns"
            f" from them: {names}"
        )


def _captions_of_others(data: ConceptRecords, concepts: Sequence[ConceptRecords]) -> Iterator[str]:
    """Warn of images whose captions have only the trigger of another concept."""
    own = data.concept.trigger
    for other in dict.fromkeys(one.concept.trigger for one in concepts if one.concept.trigger):
        if other == own:
            continue
        files = [
            record.file
            for record in data.records
            if any(has_word(caption.text, other) for caption in record.captions)
            and not (own and any(has_word(caption.text, own) for caption in record.captions))
        ]
        if files:
            yield (
                f"{len(files)} images of {data.concept.folder} have the trigger {other!r} of another concept"
                f" in a caption, and not their own: {listed(files)}"
            )


def _earlier_templates(data: ConceptRecords) -> Iterator[str]:
    """Warn of captions that another template has filled in when the folder was prepared."""
    concept = data.concept
    current = concept.template_caption
    earlier = {
        caption.original_text or caption.text
        for record in data.records
        for caption in record.captions
        if caption.source == "template"
    }
    if current is None or earlier <= {current}:
        return
    command = ["lorakit", "data", "caption", str(concept.folder)]
    for option, value in (
        ("--trigger", concept.trigger),
        ("--class-noun", concept.class_noun),
        ("--caption-template", concept.captions),
    ):
        command += [option, value] if value else []
    other = sorted(earlier - {current})[0]
    yield (
        f"{concept.folder} was prepared with the caption {other!r}, which is trained; the recipe's would be"
        f" {current!r}; to change it: {shlex.join(command)}"
    )
