"""The variants of a vote, and the order of the pairs of images that a voter sees."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from lorakit.core import rng
from lorakit.core.errors import ConfigError, DataError
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores
from lorakit.evaluation.select import Selection

T = TypeVar("T", str, int)
MAX_VARIANTS = 3
_REPEAT_EVERY = 8  # new pairs between two repeats
_REPEAT_DISTANCE = (4, 7)  # new pairs between a pair and its repeat


@dataclass(frozen=True)
class VariantChoice:
    """The names of the variants to compare, and the reason in one sentence."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class VoteItem:
    """Two images of one prompt and seed, side by side; `left` and `right` are names of variants."""

    key: SampleKey
    left: str
    right: str
    is_repeat: bool = False
    """True for a pair that was shown before, on the other sides."""

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the two variants, in alphabetical order."""
        first, second = sorted((self.left, self.right))
        return first, second


def choose_variants(
    evaluation: Evaluation, selection: Selection | None, names: Sequence[str] = ()
) -> VariantChoice:
    """Return two or three variants: those of `names`, else the selected one and those tied with it.

    Without a tie the selected checkpoint is compared with the last one, or with the base model. Raises
    ConfigError for names that do not exist, DataError if the evaluation has only one variant.
    """
    if names:
        return VariantChoice(_named_variants(evaluation, names), "as chosen with --variants")
    if len(evaluation.variants) < 2:
        remedy = "score images with --base-images, compare two evaluations, or evaluate a run"
        raise DataError("the evaluation has a single variant", where=evaluation.title, remedy=remedy)
    variants, base = evaluation.adapter_variants, evaluation.base
    best = _best_variant(selection)
    if best is None:
        if len(evaluation.variants) <= MAX_VARIANTS:
            return VariantChoice(_ordered(evaluation, evaluation.variants), "all of the evaluation")
        chosen = [base or variants[0], variants[-1]]
        reason = "no checkpoint is selected: the first and the last"
        return VariantChoice(_ordered(evaluation, chosen), reason)
    assert selection is not None
    if tied := _closest_ties(selection):
        reason = "the scores cannot distinguish them"
        return VariantChoice(_ordered(evaluation, [best, *tied]), reason)
    if best is not variants[-1]:
        return VariantChoice(_ordered(evaluation, [best, variants[-1]]), "the selected and the last one")
    return VariantChoice(
        _ordered(evaluation, [best, base or variants[0]]),
        "the selected one and the base model" if base else "the selected and the first one",
    )


def _named_variants(evaluation: Evaluation, names: Sequence[str]) -> tuple[str, ...]:
    chosen: list[VariantScores] = []
    for name in names:
        matches = [variant for variant in evaluation.variants if name in (variant.name, str(variant.step))]
        if not matches:
            remedy = f"names of the evaluation: {', '.join(variant.name for variant in evaluation.variants)}"
            raise ConfigError(f"there is no variant {name!r}", where="--variants", remedy=remedy)
        chosen.append(matches[0])
    if not 2 <= len({variant.name for variant in chosen}) == len(chosen) <= MAX_VARIANTS:
        remedy = "separate the names with commas: --variants step-200,step-400"
        raise ConfigError("two or three different variants are compared", where="--variants", remedy=remedy)
    return _ordered(evaluation, chosen)


def _best_variant(selection: Selection | None) -> VariantScores | None:
    return (selection.variant or selection.best) if selection else None


def _closest_ties(selection: Selection) -> list[VariantScores]:
    """Return the variants tied with the selected one; of many, those with the highest scores."""
    tied = [candidate for candidate in selection.candidates if candidate.variant.name in selection.tied_with]
    tied.sort(key=lambda candidate: candidate.quality.mean if candidate.quality else 0.0, reverse=True)
    return [candidate.variant for candidate in tied[: MAX_VARIANTS - 1]]


def _ordered(evaluation: Evaluation, chosen: Sequence[VariantScores]) -> tuple[str, ...]:
    """Return the names, the base model first and then by step."""
    names = {variant.name for variant in chosen}
    ordered = [BASE, *(v.name for v in evaluation.adapter_variants), *(v.name for v in evaluation.variants)]
    return tuple(name for name in dict.fromkeys(ordered) if name in names)


def order_items(
    variants: Sequence[str], seeds_of_prompts: Mapping[str, Sequence[int]], seed: int, voter: str
) -> list[VoteItem]:
    """Return all pairs of images in the order of a voter, with some repeats.

    Every prompt comes once before a second seed of any prompt, and every pair of variants equally often;
    order and sides follow from `seed` and the voter's name, so that a stopped vote continues.
    """
    pairs = list(combinations(variants, 2))
    prompt_ids = list(seeds_of_prompts)
    ranks = {name: rank for rank, name in enumerate(_shuffled(prompt_ids, seed, voter, "rank"))}
    seed_orders = {
        prompt_id: _shuffled(seeds, seed, voter, "seeds", prompt_id)
        for prompt_id, seeds in seeds_of_prompts.items()
    }
    items: list[VoteItem] = []
    for index in range(max(map(len, seed_orders.values()), default=0)):
        for turn in range(len(pairs)):
            for prompt_id in _shuffled(prompt_ids, seed, voter, "prompts", index, turn):
                if index < len(seed_orders[prompt_id]):
                    key = SampleKey(prompt_id, seed_orders[prompt_id][index])
                    pair = pairs[(ranks[prompt_id] + index + turn) % len(pairs)]
                    items.append(_place(key, pair, seed, voter))
    return _with_repeats(items, seed, voter)


def _place(key: SampleKey, pair: tuple[str, str], seed: int, voter: str) -> VoteItem:
    """Return the pair on random sides."""
    left, right = pair
    if rng.derive_seed(seed, "vote side", voter, *key, left, right) % 2:
        left, right = right, left
    return VoteItem(key, left, right)


def _with_repeats(items: Sequence[VoteItem], seed: int, voter: str) -> list[VoteItem]:
    """Insert an earlier pair on exchanged sides after every few new ones."""
    result: list[VoteItem] = []
    for number, item in enumerate(items, 1):
        result.append(item)
        if number % _REPEAT_EVERY == 0:
            low, high = _REPEAT_DISTANCE
            distance = low + rng.derive_seed(seed, "vote repeat", voter, number) % (high - low + 1)
            earlier = items[number - 1 - distance]
            result.append(VoteItem(earlier.key, earlier.right, earlier.left, is_repeat=True))
    return result


def _shuffled(values: Sequence[T], seed: int, voter: str, *purpose: str | int) -> list[T]:
    order = sorted(values)
    random.Random(rng.derive_seed(seed, "vote order", voter, *purpose)).shuffle(order)
    return order
