"""The held-out images, which the validation loss is measured on: part of the dataset, or another folder.

They are counted in different images: copies of an image, mirrored or resized ones too, are always on the same
side, and each held-out image is measured once. A fraction takes a share of every concept. `auto` takes a few
images of every subject that has enough, because fidelity and memorization are measured with them: similarity
to images that were trained on rewards learning them by heart.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe, ValidationConfig
from lorakit.core import rng
from lorakit.core.errors import DataError
from lorakit.data.items import DatasetItem, subject_items
from lorakit.imaging import near_duplicates

LISTED_FILES = 5  # named in the log
AUTOMATIC_COUNTS = ((20, 4), (12, 3))
"""(different images of a subject, how many of them `auto` holds out); of fewer none."""


@dataclass(frozen=True)
class DataSplit:
    """The images that are trained on, and those held out, each once; `notes` are lines for the log."""

    train: list[DatasetItem]
    held_out: list[DatasetItem]
    notes: list[str] = field(default_factory=list)


def split_dataset(items: Sequence[DatasetItem], recipe: Recipe) -> DataSplit:
    """Hold out `validate.fraction` of the dataset's images, those with the smallest keyed numbers.

    At least one image is held out if the fraction is above 0, and one of each concept is always trained on.
    Raises DataError if that is impossible. A slider, whose images the base model generated, holds none out
    by itself.
    """
    fraction = recipe.validate_.fraction
    if not recipe.validate_.holds_out or (recipe.slider and fraction == "auto"):
        return DataSplit(list(items), [])
    splitter = _Splitter(items, recipe.train.seed)
    return splitter.split_automatically() if fraction == "auto" else splitter.split(fraction)


def automatic_count(num_images: int) -> int:
    """Return how many of the different images of a subject `auto` holds out."""
    return next((count for least, count in AUTOMATIC_COUNTS if num_images >= least), 0)


class _Splitter:
    """Chooses groups of copies to hold out, concept by concept."""

    def __init__(self, items: Sequence[DatasetItem], seed: int) -> None:
        self.items, self.seed = items, seed
        self.contents = list(dict.fromkeys(item.record.content_hash for item in items))
        self.concepts = list(dict.fromkeys(item.concept for item in items))
        self.by_content: dict[str, list[DatasetItem]] = defaultdict(list)
        for item in items:
            self.by_content[item.record.content_hash].append(item)
        self.trained = {concept: len(self._contents_with(concept)) for concept in self.concepts}
        self.notes: list[str] = []

    def split(self, fraction: float) -> DataSplit:
        own = {concept: self._contents_of(concept) for concept in self.concepts}
        total = len(self.contents)
        if all(len(contents) < 2 for contents in own.values()):
            raise DataError(
                f"an image can be held out only if another one of its concept is trained on, and there"
                f" {'is one image' if total == 1 else 'is one image of each'} (copies are not counted)",
                where=f"validate.fraction: {fraction:g}",
                remedy="set validate.fraction=0, or validate.folder to a folder of other images",
            )
        count = min(max(1, round(total * fraction)), total - 1)
        if round(total * fraction) < 1:
            self.notes.append(
                f"validate.fraction {fraction:g} of {total} images is less than one: one is held out"
            )
        quotas = _quotas([len(contents) for contents in own.values()], count)
        chosen: set[str] = set()
        for concept, quota in zip(self.concepts, quotas, strict=True):
            chosen |= self._choose(concept, set(own[concept]) - chosen, quota)
        return self._result(chosen)

    def split_automatically(self) -> DataSplit:
        """Hold out a few groups of near duplicates of each subject, single images first."""
        chosen: set[str] = set()
        if len(self.contents) < AUTOMATIC_COUNTS[-1][0]:
            return self._result(chosen)
        for items in subject_items(self.items).values():
            own = {item.record.content_hash for item in items}
            groups = [group for group in self.groups if set(group) <= own - chosen]
            groups.sort(key=lambda group: (len(group), min(map(self._keyed_order, group))))
            spare = (group for group in groups if self._leaves_enough(group))
            for group in itertools.islice(spare, automatic_count(len(groups))):
                chosen |= set(group)
        return self._result(chosen)

    def _contents_with(self, concept: Concept) -> list[str]:
        """Return the contents of which a concept has an image."""
        return [c for c in self.contents if any(item.concept == concept for item in self.by_content[c])]

    def _contents_of(self, concept: Concept) -> list[str]:
        """Return the contents whose first image is of a concept."""
        return [c for c in self.contents if self.by_content[c][0].concept == concept]

    def _choose(self, concept: Concept, own: set[str], quota: int) -> set[str]:
        """Return `quota` contents of a concept in whole groups of near duplicates, as far as they fit."""
        selected = self._fitting([group for group in self.groups if set(group) <= own], quota)
        if quota and not selected:
            selected = self._fitting([[content] for content in sorted(own)], quota)
            if selected:
                self.notes.append(
                    f"warning: near duplicates of the held-out images of {concept.folder.name} are trained"
                    " on, for its images are all alike"
                )
        if not selected and len(self.concepts) > 1:
            self.notes.append(f"no image of {concept.folder.name} is held out")
        return selected

    def _fitting(self, groups: Sequence[Sequence[str]], quota: int) -> set[str]:
        """Return the contents of the first groups that fit, by their keyed numbers."""
        selected: set[str] = set()
        for group in sorted(groups, key=lambda group: min(map(self._keyed_order, group))):
            if len(selected) + len(group) <= quota and self._leaves_enough(group):
                selected |= set(group)
        return selected

    def _leaves_enough(self, group: Sequence[str]) -> bool:
        """Take a group from what is trained on, and return True, unless a concept would keep no image."""
        taken_by = Counter(
            c for content in group for c in {item.concept for item in self.by_content[content]}
        )
        if any(self.trained[concept] <= number for concept, number in taken_by.items()):
            return False
        for concept, number in taken_by.items():
            self.trained[concept] -= number
        return True

    def _keyed_order(self, content: str) -> tuple[int, str]:
        first_file = min(item.record.file for item in self.by_content[content])
        return rng.derive_seed(self.seed, "held out", content), first_file

    @cached_property
    def groups(self) -> list[list[str]]:
        """Return the contents in groups of near duplicates."""
        pairs = near_pairs_of([self.by_content[content][0] for content in self.contents])
        indices = near_duplicates.connected_groups(len(self.contents), pairs)
        return [[self.contents[index] for index in group] for group in indices]

    def _result(self, chosen: set[str]) -> DataSplit:
        train = [item for item in self.items if item.record.content_hash not in chosen]
        held_out = [item for item in self.items if item is self.by_content[item.record.content_hash][0]]
        held_out = [item for item in held_out if item.record.content_hash in chosen]
        if copies := len(self.items) - len(train) - len(held_out):
            self.notes.append(f"{copies} copies of held-out images are not trained on either")
        return DataSplit(train, held_out, self.notes)


def near_pairs_of(items: Sequence[DatasetItem]) -> list[tuple[int, int]]:
    """Return the pairs of items whose perceptual hashes are close, as indices."""
    hashes = {i: item.record.phash or "" for i, item in enumerate(items)}
    known = [i for i, text in hashes.items() if re.fullmatch("[0-9a-f]{32}", text)]
    return [(known[i], known[j]) for i, j, _ in near_duplicates.near_pairs([hashes[i] for i in known])]


def _quotas(sizes: Sequence[int], count: int) -> list[int]:
    """Divide `count` in proportion to `sizes`; each gets one if that suffices, and keeps one of its own."""
    limits = [max(0, size - 1) for size in sizes]
    quotas = [0] * len(sizes)
    if count >= sum(limit > 0 for limit in limits):
        quotas = [min(1, limit) for limit in limits]
    total = sum(sizes)
    while sum(quotas) < count and quotas != limits:
        open_indices = [i for i, limit in enumerate(limits) if quotas[i] < limit]
        furthest = max(open_indices, key=lambda i: (sizes[i] * count / total - quotas[i], -i))
        quotas[furthest] += 1
    return quotas


def check_separate(held_out: Sequence[DatasetItem], train: Sequence[DatasetItem]) -> None:
    """Raise DataError for held-out images that are also trained on."""
    trained = {item.record.content_hash: item for item in train}
    shared = [item for item in held_out if item.record.content_hash in trained]
    if shared:
        pairs = [f"{item.name} = {trained[item.record.content_hash].name}" for item in shared]
        raise DataError(
            f"{len(shared)} images of validate.folder are also trained on: {listed(pairs)}",
            where=f"validate.folder: {shared[0].folder}",
            remedy="take them out of one of the two folders and prepare it again",
        )


def leakage_notes(
    held_out: Sequence[DatasetItem], train: Sequence[DatasetItem], class_images: Sequence[DatasetItem]
) -> Iterator[str]:
    """Yield a warning about held-out images that are class images, or near duplicates of trained ones."""
    contents = {item.record.content_hash for item in class_images}
    if shared := [item.name for item in held_out if item.record.content_hash in contents]:
        yield f"warning: held-out images are class images too, which are trained on: {listed(shared)}"
    both = [*held_out, *train]
    pairs = near_pairs_of(both) if held_out else []
    near = {i: j for i, j in pairs if i < len(held_out) <= j}
    if near:
        names = [f"{both[i].name} ~ {both[j].name}" for i, j in sorted(near.items())]
        yield f"warning: held-out images are near duplicates of images that are trained on: {listed(names)}"


def summary(split: DataSplit, recipe: Recipe) -> Iterator[str]:
    """Yield lines for the log: the held-out images, and settings of the validation that have no effect."""
    settings, steps = recipe.validate_, recipe.train.steps
    yield from split.notes
    if not split.held_out:
        if settings.every != ValidationConfig().every:
            yield "validate.every has no effect: set validate.fraction or validate.folder to hold images out"
        return
    names = listed([item.name for item in split.held_out])
    if settings.folder:
        yield f"validation loss: measured on {len(split.held_out)} images: {names}"
    else:
        total = len({item.record.content_hash for item in (*split.train, *split.held_out)})
        yield f"validation loss: {len(split.held_out)} of {total} images are held out: {names}"
    if settings.holds_out and settings.fraction == "auto":
        yield (
            "they are not trained on: the evaluation measures fidelity and memorization with them;"
            " validate.fraction=0 trains on all images"
        )
    if settings.every > steps:
        yield f"validate.every ({settings.every}) is above train.steps: validation at start and end only"


def listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - LISTED_FILES} more" if len(names) > LISTED_FILES else ""
    return ", ".join(names[:LISTED_FILES]) + more
