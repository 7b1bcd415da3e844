"""The variants of a vote, and the order of its pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from lorakit.core.errors import ConfigError, DataError
from lorakit.evaluation.score_table import BASE
from lorakit.evaluation.select import select_checkpoint
from lorakit.evaluation.vote.plan import choose_variants, order_items
from tests.evaluation.simulated import Truth, simulate

SEEDS = {f"p{number}": [0, 1, 2, 3] for number in range(12)}


def order(variants=("a", "b"), seed=0, voter="", seeds=SEEDS):
    return order_items(variants, seeds, seed, voter)


@pytest.mark.parametrize("variants", [("a", "b"), ("a", "b", "c")])
def test_every_pair_of_images_is_shown_once_and_some_again(variants):
    items = order(variants)
    fresh = [item for item in items if not item.is_repeat]
    num_pairs = len(variants) * (len(variants) - 1) // 2
    assert len({(item.pair, item.key) for item in fresh}) == len(fresh) == 48 * num_pairs
    assert len(items) - len(fresh) == len(fresh) // 8


@pytest.mark.parametrize("variants", [("a", "b"), ("a", "b", "c")])
def test_the_order_is_balanced_at_any_stop(variants):
    fresh = [item for item in order(variants) if not item.is_repeat]
    for count in (12, 24, 36):
        of_prompts = Counter(item.key.prompt_id for item in fresh[:count])
        assert set(of_prompts.values()) == {count // 12}  # every prompt before any prompt again
        of_pairs = Counter(item.pair for item in fresh[:count])
        assert max(of_pairs.values()) - min(of_pairs.values()) == 0
    on_the_left = Counter(item.left for item in fresh)
    assert min(on_the_left.values()) > 0.3 * len(fresh) / len(variants)


def test_a_repeat_comes_later_on_exchanged_sides():
    items = order()
    for index, item in enumerate(items):
        if item.is_repeat:
            (first,) = [i for i, other in enumerate(items) if other.key == item.key and not other.is_repeat]
            assert 4 <= index - first <= 9
            assert (items[first].left, items[first].right) == (item.right, item.left)


def test_the_order_follows_from_the_seed_and_the_voter():
    assert order() == order(seeds=dict(reversed(SEEDS.items())))
    assert order() != order(seed=1)
    assert order() != order(voter="Anna")


def test_prompts_with_fewer_seeds_are_not_repeated_for_others():
    items = order(seeds={"p": [0, 1, 2], "q": [5]})
    assert Counter(item.key.prompt_id for item in items) == {"p": 3, "q": 1}


def evaluation_and_selection(*fidelity: float):
    truths = [Truth(100 * n, value, 1.0) for n, value in enumerate(fidelity, 1)]
    evaluation = simulate(truths, noise=0.5)
    return evaluation, select_checkpoint(evaluation)


def test_the_variants_are_those_that_the_selection_cannot_distinguish():
    evaluation, selection = evaluation_and_selection(0.2, 0.6, 0.62)
    assert selection.variant is not None
    selection = replace(selection, variant=evaluation.variants[2], tied_with=["step-300"])
    choice = choose_variants(evaluation, selection)
    assert choice.names == ("step-200", "step-300")
    assert "cannot distinguish" in choice.reason


def test_of_many_ties_the_best_two_are_compared():
    evaluation, selection = evaluation_and_selection(0.3, 0.6, 0.62, 0.5)
    selection = replace(
        selection, variant=evaluation.variants[2], tied_with=["step-100", "step-300", "step-400"]
    )
    assert choose_variants(evaluation, selection).names == ("step-200", "step-300", "step-400")


@pytest.mark.parametrize(("selected", "names"), [(2, ("step-200", "step-300")), (3, (BASE, "step-300"))])
def test_without_a_tie_the_selected_one_is_compared_with_the_last_or_the_base_model(selected, names):
    evaluation, selection = evaluation_and_selection(0.2, 0.6, 0.62)
    selection = replace(selection, variant=evaluation.variants[selected], tied_with=[])
    assert choose_variants(evaluation, selection).names == names


def test_without_a_selection_the_variants_themselves_are_compared():
    evaluation, _ = evaluation_and_selection(0.2, 0.6)
    assert choose_variants(evaluation, None).names == (BASE, "step-100", "step-200")
    evaluation.variants = evaluation.variants[:1]
    with pytest.raises(DataError, match="a single variant"):
        choose_variants(evaluation, None)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["300", "100"], ("step-100", "step-300")),
        (["step-200", "base"], (BASE, "step-200")),
        (["base", "100", "300"], (BASE, "step-100", "step-300")),
    ],
)
def test_variants_are_chosen_by_name_or_step(names, chosen):
    evaluation, selection = evaluation_and_selection(0.2, 0.6, 0.62)
    assert choose_variants(evaluation, selection, names).names == chosen


@pytest.mark.parametrize(
    "names", [["100"], ["100", "step-100"], ["100", "nine"], ["100", "200", "300", "base"]]
)
def test_variants_that_cannot_be_compared_are_refused(names):
    evaluation, selection = evaluation_and_selection(0.2, 0.6, 0.62)
    with pytest.raises(ConfigError) as refused:
        choose_variants(evaluation, selection, names)
    assert refused.value.where == "--variants"
    assert refused.value.remedy
