"""Words of the training data that must not be published: captions, and names of files and folders.

Texts that people wrote or that an evaluation composed may repeat them: prompts made from captions, a verdict
that names an image. What repeats them is left out. Where the dataset is not on this machine any more nothing
can be compared, and every such text is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from lorakit import manifest
from lorakit.config.recipe import Recipe
from lorakit.core.errors import LorakitError

MIN_CAPTION_WORDS = 4
"""Captions of fewer words are searched as a whole text only: a single word occurs everywhere."""
TEMPLATE = "template"
"""Source of captions that lorakit made of trigger and class noun: they are not private."""
_FILE_NAME = re.compile(
    r"[\w-]+\.(?:png|jpe?g|webp|bmp|gif|tiff?|avif|heic|jxl|mp4|mov|mkv|webm|txt|jsonl?)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class PrivateData:
    """Captions and names of a dataset, normalized; `known` is False if the dataset could not be read."""

    captions: frozenset[str]
    names: frozenset[str]
    known: bool

    def repeats(self, text: str) -> bool:
        """Return True if a text repeats a caption or a name, or if that cannot be checked."""
        if not self.known or _FILE_NAME.search(text):
            return True
        plain = _normalized(text)
        if plain in self.captions:
            return True
        words = set(re.findall(r"[^\s\"'`(),;:]+", text.casefold()))
        return bool(words & self.names) or any(
            caption in plain for caption in self.captions if len(caption.split()) >= MIN_CAPTION_WORDS
        )


def read_private_data(recipe: Recipe) -> PrivateData:
    """Return the captions and names of all of a recipe's datasets that this machine has."""
    captions, names = set[str](), set[str]()
    try:
        for concept in recipe.concepts:
            records = manifest.load_manifest(concept.folder)
            names |= {PurePosixPath(record.file).name.casefold() for record in records}
            names |= {part.casefold() for r in records for part in PurePosixPath(r.file).parent.parts}
            captions |= {
                _normalized(caption.text)
                for r in records
                for caption in r.captions
                if caption.source != TEMPLATE
            }
    except (LorakitError, OSError):
        return PrivateData(frozenset(), frozenset(), known=False)
    nouns = [concept.class_noun for concept in recipe.concepts]
    words = {word.casefold() for word in (*recipe.triggers, *nouns) if word}
    return PrivateData(frozenset(captions - words - {""}), frozenset(names - words), known=True)


def _normalized(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())
