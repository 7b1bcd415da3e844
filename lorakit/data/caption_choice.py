"""The caption of each use of an image: which of several, whether it is dropped, and the order of its tags.

Everything is keyed by the seed, the image and the position in the stream of samples, so that it depends on no
worker, batch size or number of processes.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.config.caption_use import CaptionUse
from lorakit.core import rng
from lorakit.core.words import has_word, is_tag_list, split_tags
from lorakit.manifest import Caption


def is_tags(text: str, use: CaptionUse) -> bool:
    """Return True for a caption that is a list of tags."""
    if use.tag_captions == "all" or (use.keep_marker and use.keep_marker in text):
        return True
    return is_tag_list(text, use.tag_separator)


def caption_shares(captions: Sequence[Caption], use: CaptionUse) -> tuple[float, ...]:
    """Return how often each caption of an image is used; their sum is 1, or 0 if the weights use none.

    The share of a form or source is divided among the captions of an image that have it; shares of those that
    the image has not go to the others.
    """
    if use.weights is None:
        weights = [1.0] * len(captions)
    elif isinstance(use.weights, tuple):
        weights = [*use.weights, *[0.0] * len(captions)][: len(captions)]
    else:
        shares, by_form = use.weights.shares(), use.weights.by_form
        kinds = [_form(caption.text, use) if by_form else caption.source for caption in captions]
        weights = [shares.get(kind, 0.0) / kinds.count(kind) for kind in kinds]
    total = sum(weights)
    return tuple(weight / total if total else 0.0 for weight in weights)


def _form(text: str, use: CaptionUse) -> str:
    return "tags" if is_tags(text, use) else "sentences"


@dataclass(frozen=True)
class CaptionChoice:
    """The random choices for the captions of one image.

    `varied` has an entry for each caption, True if its uses differ; `versions` is the number of different
    ones, None for a new one at each use. `image` identifies the image.
    """

    shares: tuple[float, ...]
    dropout: float = 0.0
    varied: tuple[bool, ...] = ()
    versions: int | None = None
    image: str = ""

    @property
    def main_index(self) -> int:
        """The caption that is used most, the first of several."""
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    def is_dropped(self, seed: int, position: int) -> bool:
        """Return True if the image is trained with the empty caption at this position of the stream."""
        return bool(self.dropout) and rng.keyed_uniform(seed, "caption dropout", position) < self.dropout

    def caption_index(self, seed: int, position: int) -> int:
        """Return the caption that is used at this position of the stream."""
        last = max(index for index, share in enumerate(self.shares) if share)
        cumulative = list(itertools.accumulate(self.shares))
        return min(last, bisect.bisect_right(cumulative, rng.keyed_uniform(seed, "caption", position)))

    def tag_seed(self, seed: int, position: int, caption_index: int) -> int | None:
        """Return the seed of the order of tags at this position; None for a caption that does not vary."""
        if not self.varied or not self.varied[caption_index]:
            return None
        if self.versions is None:
            return rng.derive_seed(seed, "tags", self.image, caption_index, f"use {position}")
        version = rng.derive_seed(seed, "version of tags", position) % self.versions
        return rng.derive_seed(seed, "tags", self.image, caption_index, f"version {version}")


def caption_choice(captions: Sequence[Caption], use: CaptionUse, image: str) -> CaptionChoice:
    """Return the choices for an image with these captions."""
    return CaptionChoice(
        shares=caption_shares(captions, use),
        dropout=use.caption_dropout,
        varied=tuple(use.varies_tags and is_tags(caption.text, use) for caption in captions),
        versions=use.versions,
        image=image,
    )


def caption_as_written(text: str, use: CaptionUse) -> str:
    """Return a caption without the markers for shuffling."""
    marked = any(mark and mark in text for mark in (use.keep_marker, use.group_separator))
    return _Tags.of(text, use).joined(use) if marked else text


def vary_tags(text: str, use: CaptionUse, seed: int, kept_words: Sequence[str] = ()) -> str:
    """Return a list of tags in another order, with some left out, as `use` says.

    Tags with one of `kept_words` are never left out.
    """
    tags, random_numbers = _Tags.of(text, use), random.Random(seed)
    free = list(tags.free)
    if use.shuffle_tags:
        random_numbers.shuffle(free)
    if use.tag_dropout:
        stays = [random_numbers.random() >= use.tag_dropout for _ in free]
        left = [
            tag
            for tag, stay in zip(free, stays, strict=True)
            if stay or any(has_word(tag, word) for word in kept_words)
        ]
        if not (left or tags.first or tags.last):
            left = [free[random_numbers.randrange(len(free))]] if free else []
        free = left
    return _Tags(tags.first, tuple(free), tags.last).joined(use)


@dataclass(frozen=True)
class _Tags:
    """The tags of a caption: those that stay in place at both ends, and those between them."""

    first: tuple[str, ...]
    free: tuple[str, ...]
    last: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, use: CaptionUse) -> _Tags:
        if use.keep_marker and use.keep_marker in text:
            first, _, rest = text.partition(use.keep_marker)
            free, _, last = rest.partition(use.keep_marker)
            parts = (first, free, last.replace(use.keep_marker, use.tag_separator))
            return cls(*(tuple(split_tags(part, use.tag_separator)) for part in parts))
        tags = split_tags(text, use.tag_separator)
        return cls(tuple(tags[: use.keep_first]), tuple(tags[use.keep_first :]))

    def joined(self, use: CaptionUse) -> str:
        between = f"{use.tag_separator} "
        text = between.join((*self.first, *self.free, *self.last))
        if use.group_separator:
            grouped = [part.strip() for part in text.split(use.group_separator)]
            text = between.join(part for part in grouped if part)
        return text
