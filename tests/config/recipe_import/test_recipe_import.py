"""Configurations of other trainers become recipes, and no setting is lost without a word."""

from __future__ import annotations

import json
import re

import pytest

from lorakit.cli.main import main
from lorakit.config import strict_yaml
from lorakit.config.recipe import parse_recipe
from lorakit.config.recipe_import import import_recipe
from lorakit.core.errors import ConfigError
from tests import runs
from tests.config.recipe_import.configurations import CONFIGURATIONS, write


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("images"), 4)


def nested(tree: dict, key: str):
    for part in key.split("."):
        tree = tree[part]
    return tree


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_settings_get_the_meaning_that_they_have_there(tmp_path, images, name):
    imported = import_recipe(write(tmp_path, name, images))
    configuration = CONFIGURATIONS[name]
    assert imported.trainer == configuration.trainer
    text = json.dumps({key: nested(imported.tree, key) for key in configuration.expected})
    text = text.replace(images.as_posix(), "DATA").replace((tmp_path / "runs").as_posix(), "OUT")
    assert json.loads(text) == configuration.expected
    assert set(imported.missing) == ({"dataset"} if name == "musubi command" else set())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_text_is_the_recipe_and_names_every_setting_without_an_equal(tmp_path, images, name):
    imported = import_recipe(write(tmp_path, name, images))
    text = imported.text("file")
    tree = strict_yaml.parse_yaml(text, "text")
    filled = {key: value for key, value in tree.items() if value is not None}
    assert filled == imported.tree
    parse_recipe(dict.fromkeys(imported.missing, "x") | filled)
    for note in imported.notes:
        assert note.setting in text
        assert note.text or not note.needed
    if "zz_invented" in CONFIGURATIONS[name].text:
        assert re.search(r"#   \S*zz_invented = (abc|7): lorakit has no such setting", text)


NUMBER_OR_WORD = re.compile(r"(?<=[=: \[\"'])(\d+\.?\d*(?:e-?\d+)?|true|false)(?=[\s,\"'}\]])")


@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n not in ("kohya command", "musubi command")])
def test_a_change_of_any_setting_changes_the_text(tmp_path, images, name):
    """Each number and each switch in turn: one without effect on the text would be lost without a word."""

    def content(text: str) -> tuple:
        imported = import_recipe(write(tmp_path, name, images, text))
        return imported.text("file"), imported.prompts

    original = CONFIGURATIONS[name].text
    before = content(original)
    lost = []
    for match in NUMBER_OR_WORD.finditer(original):
        other = {"true": "false", "false": "true"}.get(match[0], "9" + match[0])
        changed = original[: match.start()] + other + original[match.end() :]
        if content(changed) == before:
            lost.append(original[match.start() - 30 : match.end()])
    assert not lost


def test_sample_prompts_become_a_file_beside_the_recipe(tmp_path, images, capsys):
    file = write(tmp_path, "ai-toolkit", images)
    out = tmp_path / "recipe.yaml"
    assert main(["recipe", "import", str(file), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "recipe-prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["a sks dog", "a cat"]
    assert rows[0] | {"id": "", "prompt": ""} == {
        "id": "", "prompt": "", "negative": "blurry", "width": 64, "height": 64, "seeds": 42
    }  # fmt: skip
    assert (tmp_path / "recipe-prompts.jsonl").as_posix() in out.read_text()
    assert f"lorakit train {out}" in capsys.readouterr().err
    assert main(["recipe", "import", str(file), "--out", str(out)]) == 2, "nothing is replaced"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("full.json", '{"training_method": "FINE_TUNE", "base_model_name": "x"}', "FINE_TUNE"),
        ("full.toml", 'micro_batch_size_per_gpu = 1\nsave_dtype = "a"', r"\[adapter\]"),
        ("full.json", '{"model_type": "full", "model_family": "x", "lora_type": "y"}', "model_type full"),
        ("two.yaml", "job: a\nconfig: {process: [{type: a}, {type: b}]}", "no single process"),
        ("none.txt", "hello", "no training command"),
        ("two.sh", "python a_train_network.py --x 1\npython b_train_network.py --y 2", "several"),
        ("other.json", '{"a": 1}', "not a configuration of a trainer"),
        ("recipe.yaml", "base: tiny-unet\ndataset: x\nout: y\nadapter: {rank: 4}", "not a configuration"),
        ("broken.toml", "a = ", "not valid TOML"),
        ("broken.yaml", "a: [", "not valid YAML"),
        ("aliases.yaml", "a: &x 1\nb: *x", "aliases"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_the_reason(tmp_path, name, text, words):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        import_recipe(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["kohya TOML", "ai-toolkit", "OneTrainer", "SimpleTuner", "diffusion-pipe"])
def test_training_on_such_a_file_names_the_command_that_makes_a_recipe(tmp_path, images, capsys, name):
    file = write(tmp_path, name, images)
    assert main(["train", str(file)]) == 2
    error = capsys.readouterr().err
    assert CONFIGURATIONS[name].trainer in error
    assert f"lorakit recipe import {file}" in error


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("kohya TOML", []),
        ("ai-toolkit", ["adapter.targets=attention", "samples.prompts=null"]),
        ("OneTrainer", ["train.steps=2"]),
        ("SimpleTuner", []),
        ("diffusion-pipe", ["train.steps=2", "export=[diffusers]"]),
    ],
)
def test_imported_recipes_train(tmp_path, images, name, changes):
    """On the embedded bases, with the words of each trainer for the modules to adapt."""
    recipe = tmp_path / "recipe.yaml"
    assert main(["recipe", "import", str(write(tmp_path, name, images)), "--out", str(recipe)]) == 0
    out = tmp_path / "trained"
    runs.train(recipe, f"out={out}", *changes)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) >= 2
    assert (out / "adapter.safetensors").exists()
