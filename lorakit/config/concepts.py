"""Recipe key `dataset`: one folder, or a list of concepts, each with folder, trigger word and class noun."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from lorakit.config.caption_use import CaptionUse
from lorakit.config.fields import RecipeSection, StrippedPath, StrippedStr
from lorakit.core.errors import ConfigError
from lorakit.core.words import has_word

PLACEHOLDERS = ("trigger", "class_noun")
DEFAULT_TEMPLATE = "a photo of {trigger} {class_noun}"
_KNOWN_PLACEHOLDERS = " or ".join(f"{{{name}}}" for name in PLACEHOLDERS)


class Concept(RecipeSection):
    """A folder of the dataset with a trigger word and class noun of its own."""

    folder: StrippedPath
    """A folder with manifest.jsonl, or a plain folder of images, which is then prepared first."""
    trigger: StrippedStr | None = None
    """Trigger word of the concept; used in captions that lorakit writes, and recorded in exports."""
    class_noun: StrippedStr | None = None
    """Class noun of the concept, such as `dog`; used in captions that lorakit writes."""
    repeats: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    """Number of times that an epoch contains each image; multiplies the repeats in the manifest."""
    weight: Annotated[float, Field(gt=0, le=1000, strict=True)] = 1.0
    """Factor of the loss of the folder's images. The loss of a step is still the sum over its images divided
    by their number, so 2 gives an image twice the share in the gradient."""
    captions: StrippedStr | None = None
    """Caption of images that have none, such as `a photo of {trigger} {class_noun}`, which is the default;
    used when a plain folder is prepared."""
    class_images: StrippedPath | None = None
    """Class images of this concept; those of all concepts form one set."""
    caption_use: CaptionUse | None = None
    """Use of the captions of this concept, instead of the recipe's `caption_use`."""

    @property
    def template_caption(self) -> str | None:
        """The caption for images without one; None without a template, trigger and class noun."""
        return fill_template(self.captions, self.trigger, self.class_noun)


def fill_template(template: str | None, trigger: str | None, class_noun: str | None) -> str | None:
    """Return a caption template with the words in it.

    Without a template it is "a photo of {trigger} {class_noun}", or None if there are no words.
    """
    if template is None and not (trigger or class_noun):
        return None
    text = DEFAULT_TEMPLATE if template is None else template
    for name, word in zip(PLACEHOLDERS, (trigger, class_noun), strict=True):
        text = text.replace(f"{{{name}}}", word or "")
    return " ".join(text.split())


def find_template_problem(template: str, trigger: str | None, class_noun: str | None) -> str | None:
    """Return why a caption template cannot be filled with these words, or None."""
    words = dict(zip(PLACEHOLDERS, (trigger, class_noun), strict=True))
    for name in re.findall(r"{([^{}]*)}", template):
        if name not in PLACEHOLDERS:
            return f"{{{name}}} is not known: write {_KNOWN_PLACEHOLDERS}"
        if not words[name]:
            return f"it has {{{name}}}, and there is no {name}"
    rest = re.sub(r"{[^{}]*}", "", template)
    if "{" in rest or "}" in rest:
        return f"braces stand for {_KNOWN_PLACEHOLDERS} only"
    return None


def _dataset_kind(value: Any) -> str:
    return "Concepts" if isinstance(value, list | tuple) else "Folder"


def _reject_empty_list(value: Any) -> Any:
    if not value:
        raise ValueError("the list has no concept")
    return value


def _reject_mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        raise ValueError("concepts stand in a list, as in dataset: [{folder: photos, trigger: sks}]")
    return value


Dataset = Annotated[
    Annotated[StrippedPath, BeforeValidator(_reject_mapping), Tag("Folder")]
    | Annotated[tuple[Concept, ...], BeforeValidator(_reject_empty_list), Tag("Concepts")],
    Discriminator(_dataset_kind),
]


def concept_to_change(dataset: Any, key: str) -> dict[str, Any]:
    """Return the concept, in a recipe's plain values, that an override such as `dataset.0.repeats` changes.

    Raises ConfigError if there is no such concept.
    """
    _, number, *names = key.split(".")
    if not isinstance(dataset, list):
        raise ConfigError(
            "the dataset of this recipe is one folder, not a list of concepts",
            where=key,
            remedy=f"give a list: 'dataset=[{{folder: {dataset or 'photos'}, repeats: 2}}]'",
        )
    if not (number.isascii() and number.isdigit() and int(number) < len(dataset) and names):
        last = len(dataset) - 1
        raise ConfigError(
            f"this recipe has {len(dataset)} concepts, which are changed by number and key",
            where=key,
            remedy=f"write for instance dataset.{last}.repeats=2"
            + (f" (numbers 0 to {last})" if last else ""),
        )
    concept: Any = dataset[int(number)]
    if not isinstance(concept, dict):
        raise ConfigError(
            "this concept is not a mapping", where=f"dataset.{number}", remedy="- folder: photos"
        )
    return concept


def unique_triggers(concepts: Sequence[Concept]) -> tuple[str, ...]:
    """Return the trigger words of the concepts, each once."""
    return tuple(dict.fromkeys(concept.trigger for concept in concepts if concept.trigger))


def find_contradictions(concepts: Sequence[Concept]) -> Iterator[str]:
    """Yield a sentence for each template that cannot be filled, and for each pair of concepts whose words or
    class images contradict each other."""
    for number, concept in enumerate(concepts):
        if problem := find_template_problem(concept.captions or "", concept.trigger, concept.class_noun):
            yield f"dataset.{number}.captions: {problem} (value: {concept.captions!r})"
    for (i, first), (j, second) in combinations(enumerate(concepts), 2):
        names = f"dataset.{i} and dataset.{j}"
        if problem := _conflicting_triggers(first, second):
            yield f"{names}: {problem}"
        for number, one, other in ((i, first, second), (j, second, first)):
            if one.trigger and other.class_noun and has_word(_plain(other.class_noun), _plain(one.trigger)):
                yield (
                    f"{names}: the trigger {one.trigger!r} of dataset.{number} is in the class noun"
                    f" {other.class_noun!r} of the other: choose a rarer word"
                )
        same_class_images = first.class_images is not None and first.class_images == second.class_images
        if same_class_images and first.class_noun != second.class_noun:
            yield (
                f"{names}: one folder of class images cannot show both {first.class_noun!r} and"
                f" {second.class_noun!r}: use two folders"
            )


def _conflicting_triggers(first: Concept, second: Concept) -> str | None:
    """Return why the triggers of two concepts would be confused, or None."""
    if not (first.trigger and second.trigger):
        return None
    one, other = first.trigger, second.trigger
    if one == other and first.class_noun == second.class_noun:
        return None  # two folders of one subject
    if _plain(one) == _plain(other):
        if one == other:
            return f"both have the trigger {one!r} with different class nouns: give each a word of its own"
        return f"the triggers {one!r} and {other!r} differ only in case: use different words, or one spelling"
    shorter, longer = sorted((one, other), key=len)
    if has_word(_plain(longer), _plain(shorter)):
        return (
            f"the trigger {shorter!r} is part of the trigger {longer!r}, so that captions with the longer one"
            " would train both: use different words"
        )
    return None


def _plain(text: str) -> str:
    """Return a text without differences of case and of Unicode's encoding of accents."""
    return unicodedata.normalize("NFC", text).casefold()
