"""Section `caption_use`: of a recipe and of a concept, contradictions, words of other trainers."""

from __future__ import annotations

from typing import Any

import pytest

from lorakit.config import recipe
from lorakit.config.recipe import training_settings
from lorakit.core.errors import ConfigError

RECIPE = {"base": "tiny-dit", "dataset": "photos", "out": "run"}


def parse(**changes: Any) -> recipe.Recipe:
    return recipe.parse_recipe(RECIPE | changes)


def problem(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    return str(caught.value)


def test_a_concept_has_its_own_use_or_that_of_the_recipe():
    dataset = [{"folder": "a"}, {"folder": "b", "caption_use": {"tag_dropout": 0.3}}]
    first, second = parse(dataset=dataset, caption_use={"shuffle_tags": True}).concepts
    assert first.caption_use.shuffle_tags
    assert (second.caption_use.shuffle_tags, second.caption_use.tag_dropout) == (False, 0.3)
    (alone,) = parse(caption_use={"weights": [1, 2]}).concepts
    assert alone.caption_use.weights == (1, 2)


def test_the_stored_recipe_has_the_same_meaning():
    dataset = [{"folder": "a", "caption_use": {"weights": {"tags": 1, "sentences": 2}}}, {"folder": "b"}]
    before = parse(dataset=dataset, caption_use={"weights": [1, 2], "shuffle_tags": True})
    after = recipe.parse_recipe(before.dump())
    assert after.concepts == before.concepts
    assert training_settings(after) == training_settings(before)


@pytest.mark.parametrize(
    "override",
    ["dataset.1.caption_use.shuffle_tags=true", "dataset.1.caption_use={shuffle_tags: true}"],
)
def test_an_override_changes_the_use_of_one_concept(override):
    before = parse(dataset=[{"folder": "a"}, {"folder": "b"}])
    changed = recipe.change_recipe(before, [override])
    assert [c.caption_use.shuffle_tags for c in changed.concepts] == [False, True]
    different = [k for k, v in training_settings(changed).items() if training_settings(before).get(k) != v]
    assert "dataset.1.caption_use.shuffle_tags" in different
    assert not any(key.startswith("dataset.0") for key in different)


def test_where_texts_are_encoded_changes_no_training_setting():
    kept = parse(memory={"keep_text_encoders": True})
    assert training_settings(kept) == training_settings(parse())
    assert training_settings(parse(memory={"quantize": "nf4"})) != training_settings(parse())


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"keep_first": 1}, "keep_first is for tags that change: set caption_use.shuffle_tags=true"),
        ({"versions": 4}, "versions is for tags that change"),
        ({"keep_marker": ","}, "keep_marker must differ from caption_use.tag_separator"),
        ({"keep_marker": ";;", "group_separator": ";;"}, "must differ from caption_use.group_separator"),
        ({"weights": {"tags": 1, "file": 2}}, "for forms (tags, sentences) or for sources"),
        ({"weights": {"tags": 0}}, "needs a number above 0"),
        ({"weights": [0, 0]}, "needs a number above 0"),
        ({"weights": []}, "at least 1 entry"),
        ({"weights": {"tagz": 1}}, "did you mean 'tags'?"),
        ({"weights": {"tags": -1}}, "at least 0"),
        ({"tag_dropout": 1}, "below 1"),
        ({"shuffle_tags": "yes"}, "caption_use.shuffle_tags"),
    ],
)
def test_contradictions_name_the_key(keys, expected):
    assert expected in problem(caption_use=keys)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("shuffle_caption", "caption_use.shuffle_tags=true"),
        ("enable_tag_shuffling", "caption_use.shuffle_tags=true"),
        ("keep_tokens", "caption_use.keep_first"),
        ("keep_tokens_separator", "caption_use.keep_marker"),
        ("secondary_separator", "caption_use.group_separator"),
        ("caption_tag_dropout_rate", "caption_use.tag_dropout"),
        ("tag_delimiter", "caption_use.tag_separator"),
        ("caption_dropout_rate", "caption_use.caption_dropout"),
        ("objective.caption_dropout", "'caption_use.caption_dropout'"),
        ("enable_wildcard", "--caption-lines captions"),
        ("caption_prefix", "prefix=TEXT"),
    ],
)
def test_words_of_other_trainers_name_ours(key, meant):
    section, _, name = key.rpartition(".")
    assert meant in problem(**({section: {name: 1}} if section else {name: 1}))
