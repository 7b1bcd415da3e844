"""The section `tracker`: a word or a section, from the recipe or from overrides in any order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from lorakit.config import recipe as recipes
from lorakit.config.monitoring import TRACKER_KEYS
from lorakit.core import storage
from lorakit.core.errors import ConfigError

BASE = {"base": "tiny-dit", "dataset": "d", "out": "o"}


def parse(tracker: Any) -> recipes.TrackerConfig:
    return recipes.parse_recipe(BASE | {"tracker": tracker}).tracker_config


@pytest.mark.parametrize("name", TRACKER_KEYS)
def test_a_word_names_a_tracker_and_a_section_its_keys(name):
    assert parse(name) == parse({"name": name})
    values = {key: ["a"] if key == "tags" else "text" for key in TRACKER_KEYS[name]}
    assert {key: v for key, v in parse({"name": name, **values}).labels().items() if v} == values


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        ({"name": "none", "project": "x"}, "tracker.project: set tracker.name"),
        (
            {"name": "tensorboard", "project": "x"},
            "tracker.project: not a key of tensorboard; it has no keys",
        ),
        (
            {"name": "mlflow", "entity": "e", "group": "g"},
            "tracker.entity, tracker.group: not a key of mlflow; its keys are project, run_name, tags",
        ),
        ({"name": "wandb", "projet": "x"}, "tracker.projet: unknown key; did you mean 'project'?"),
        ({"name": "wandbb"}, "did you mean 'wandb'?"),
        ({"project": "x"}, "tracker.name: this key is required"),
        ({"name": "wandb", "tags": "a, b"}, "tracker.tags: this is a list: write [a, b]"),
        ({"name": "wandb", "project": 1}, "tracker.project: 1 is not read as text"),
        ({"name": "wandb", "group": " g"}, "tracker.group: it is empty, or begins or ends with a space"),
    ],
)
def test_a_key_that_the_tracker_does_not_have_is_refused_with_those_that_it_has(tracker, words):
    with pytest.raises(ConfigError) as error:
        parse(tracker)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("stored", "overrides", "section"),
    [
        (None, ["tracker=wandb", "tracker.project=x", "tracker.tags=[a]"], ("wandb", "x", ["a"])),
        ("wandb", ["tracker.project=x"], ("wandb", "x", None)),
        ("wandb", ["tracker={project: x}"], ("wandb", "x", None)),
        ({"name": "wandb", "project": "p"}, ["tracker=wandb", "tracker.tags=[a]"], ("wandb", "p", ["a"])),
        ({"name": "wandb", "project": "p"}, ["tracker=none"], ("none", None, None)),
        ({"name": "wandb", "project": "p"}, ["tracker=mlflow", "tracker.tags=[a]"], ("mlflow", None, ["a"])),
    ],
)
def test_overrides_of_the_tracker_work_in_any_order(stored, overrides, section, tmp_path: Path):
    file = storage.write_json(tmp_path / "r.yaml", BASE | ({"tracker": stored} if stored else {}))
    for order in itertools.permutations(overrides):
        config = recipes.load_recipe(file, list(order)).tracker_config
        assert (config.name, config.project, config.tags) == section


@pytest.mark.parametrize(
    ("before", "change", "section"),
    [
        ("wandb", {"project": "x"}, ("wandb", "x")),
        ({"name": "wandb", "project": "p"}, "none", ("none", None)),
        ({"name": "wandb", "project": "p"}, {"tags": ["a"]}, ("wandb", "p")),
    ],
)
def test_the_python_interface_merges_the_tracker_as_overrides_do(before, change, section):
    config = recipes.resolve_recipe(BASE | {"tracker": before}, tracker=change).tracker_config
    assert (config.name, config.project) == section


@pytest.mark.parametrize("tracker", ["wandb", {"name": "wandb", "project": "x", "tags": ["a"]}, "none"])
def test_a_recipe_that_is_written_reads_back_the_same(tracker):
    recipe = recipes.parse_recipe(BASE | {"tracker": tracker})
    assert recipes.parse_recipe(recipe.dump()) == recipe
    assert recipes.training_settings(recipe) == recipes.training_settings(recipes.parse_recipe(BASE))
