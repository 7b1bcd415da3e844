"""No message about a recipe is in pydantic's words, whatever value a key has."""

from __future__ import annotations

from typing import Any

import pytest

from lorakit.config import recipe, validation_errors
from lorakit.core.errors import ConfigError

BASE = {"base": "tiny-dit", "dataset": "a", "out": "b"}
NAN, INF = float("nan"), float("inf")
VALUES = (0, -1, 1e30, 10**30, NAN, INF, True, "1", "x", "", [], [1], ["x", "x"], {}, {"q": 1}, None, 1.5)
VALUES += ("a" * 300, "true", [0.9], [0.1, 0.2, 0.3])
PYDANTIC = ("Input", "should", "instance of", "unable to", "Extra", "Field required", "Assertion", "Tuple")


def problem(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.parse_recipe(BASE | tree)
    return str(caught.value)


def tree_with(key: str, value: Any) -> dict[str, Any]:
    """A recipe in which one key has this value, with what its section needs."""
    first, *rest = key.split(".")
    if not rest:
        return {first: value}
    node: dict[str, Any] = (
        {"token": "sks", "initializer_token": "dog"} if first == "textual_inversion" else {}
    )
    top = {first: node}
    for part in rest[:-1]:
        node = node.setdefault(part, {})
    node[rest[-1]] = value
    return top


KEYS = [key for key in validation_errors.known_keys(recipe.Recipe) if ".0." not in key]


@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key in KEYS}))
def test_every_value_of_every_key_is_refused_in_plain_words(section):
    refused = 0
    for key in (key for key in KEYS if key.partition(".")[0] == section):
        for value in VALUES:
            try:
                recipe.parse_recipe(BASE | tree_with(key, value))
            except ConfigError as error:
                text = str(error)
                assert not any(word in text for word in PYDANTIC), text
                assert len(text) < 1500, text
                refused += 1
    assert refused


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("adapter.text_encoder_lr", 0, "to leave the text encoders untrained, leave text_encoder"),
        ("adapter.text_encoder_lr", -1e-4, "-0.0001 is too small"),
        ("adapter.text_encoder_lr", INF, "inf is not a finite number"),
        ("optimizer.lr", 0, "to train the text encoders alone"),
        ("optimizer.lr", 1e-300, "1e-300 is too small"),
        ("optimizer.lr", 1e300, "1e+300 is too large"),
        ("textual_inversion.lr", 0, "to train no new token, leave textual_inversion out"),
        ("textual_inversion.lr", NAN, "nan is not a finite number"),
        ("optimizer.loraplus_lr_ratio", 0, "0 is too small: it must be above 0"),
        ("optimizer.loraplus_lr_ratio", INF, "inf is not a finite number"),
    ],
)
def test_an_impossible_learning_rate_is_refused_with_what_to_do(key, value, words):
    assert f"{key}: " in problem(tree_with(key, value))
    assert words in problem(tree_with(key, value))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.steps", 2.5, "train.steps: 2.5 is not a whole number"),
        ("train.steps", "100", "train.steps: '100' is not a whole number; write it without quotes"),
        ("optimizer.lr", "1e-4", "optimizer.lr: '1e-4' is not a number; write it without quotes"),
        ("train.deterministic", "yes", "train.deterministic: 'yes' is not true or false"),
        ("train.deterministic", "true", "'true' is not true or false; write it without quotes"),
        ("resolution", 10**6, "resolution: 1000000 is too large: it must be at most 16384"),
        ("adapter.blocks", "mid_block", "adapter.blocks: 'mid_block' is not a list"),
        ("adapter.blocks", [], "adapter.blocks: [] must have at least 1 entry"),
        ("adapter.rank_pattern", [4], "adapter.rank_pattern: [4] is not a mapping of keys to values"),
        ("adapter.text_encoder", "clip", "adapter.text_encoder: 'clip' is not true, false or a list"),
        ("adapter.text_encoder", ["a", "a"], "adapter.text_encoder: a is named twice"),
        ("objective.shift", "resoluton", "is not resolution or a number; did you mean 'resolution'?"),
        ("optimizer.betas", [0.9], "optimizer.betas: [0.9] must have at least 2 entries"),
        ("optimizer.betas", [0.9, 0.9, 0.9], "optimizer.betas: adamw8bit has 2, not 3"),
        ("textual_inversion.token", "My Dog", "'My Dog' must be of lower-case letters, digits and hyphens"),
        ("textual_inversion.token", "a" * 65, "must have at most 64 characters"),
        ("train", 5, "train: 5 is not a mapping of keys to values"),
        ("out", ["a"], "out: ['a'] is not text"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_the_right_kind(key, value, words):
    assert words in problem(tree_with(key, value))
