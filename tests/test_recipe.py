from __future__ import annotations

import pytest

from lorakit import recipe
from lorakit.errors import ConfigError

BASE = {"base": "tiny-dit", "dataset": "a", "out": "b"}


def problem(**changes) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.parse(BASE | changes, "r.yaml")
    assert caught.value.exit_code == 2
    assert "r.yaml" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimiser": {}}, "optimiser: unknown key; did you mean 'optimizer'?"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: unknown key"),
        ({"train": {"step": 5}}, "did you mean 'steps'?"),
        ({"memory": {"checkpoin": 1}}, "memory.checkpoin: unknown key; did you mean 'checkpoint'?"),
        ({"validate": {"fractoin": 0.1}}, "did you mean 'fraction'?"),
        ({"optimizer": {"name": "adamw8bitt"}}, "did you mean 'adamw8bit'?"),
        ({"optimizer": {"name": "adamw8bit "}}, "'adamw8bit ' is not one of adamw8bit, adamw"),
        ({"tracker": "wandbb"}, "did you mean 'wandb'?"),
        ({"export": ["comfy"]}, "did you mean 'comfyui'?"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr"),
        ({"optimizer": {"lr": -1e-4}}, "optimizer.lr"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
        ({"adapter": {"rank": 0}}, "adapter.rank"),
        ({"adapter": {"alpha": 0}}, "adapter.alpha"),
        ({"train": {"batch_size": 0}}, "train.batch_size"),
        ({"memory": {"checkpoint": 0.5}}, "checkpoint must be 0 or 1"),
        ({"out": " runs/a"}, "begins or ends with a blank"),
    ],
)
def test_a_wrong_value_is_named_with_the_nearest_right_one(changes, words):
    assert words in problem(**changes)


def test_every_problem_is_listed_at_once():
    text = problem(train={"steps": 0, "seeed": 1}, adapter={"rank": -1})
    assert "train.steps" in text
    assert "train.seeed" in text
    assert "adapter.rank" in text


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match="out: this key is required"):
        recipe.parse({"base": "x", "dataset": "y"})


def test_numbers_in_yaml_1_1_style(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("base: tiny-dit\ndataset: d\nout: o\noptimizer: {lr: 1e-4, weight_decay: 1E-2}\n")
    made = recipe.load(file)
    assert made.optimizer.lr == 1e-4
    assert made.optimizer.weight_decay == 0.01


def test_dotted_overrides(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("base: tiny-dit\ndataset: d\nout: o\n")
    made = recipe.load(file, ["optimizer.lr=3e-4", "memory.checkpoint=1", "export=[diffusers]"])
    assert made.optimizer.lr == 3e-4
    assert made.memory.checkpoint == 1
    assert made.export == ["diffusers"]
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        recipe.load(file, ["optimizer.lrr=1"])
    with pytest.raises(ConfigError, match="key=value"):
        recipe.load(file, ["optimizer.lr"])


@pytest.mark.parametrize(
    "text",
    [
        "base: !!python/object/apply:os.system ['touch canary']\n",
        "base: &a [x]\nout: *a\n",
        "base: a\nbase: b\n",
        "base: [unclosed\n",
        "- a list\n",
        "base: " + "x" * (300 << 10),
    ],
)
def test_hostile_or_broken_yaml_is_one_error(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        recipe.load(file)
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_a_recipe_in_another_encoding_names_the_byte(tmp_path):
    file = tmp_path / "rezépt.yaml"
    file.write_bytes("base: é".encode("cp1252"))
    with pytest.raises(ConfigError, match="not UTF-8 at byte 6"):
        recipe.load(file)


def test_the_hash_ignores_what_cannot_change_the_adapter():
    plain = recipe.parse(BASE)
    free = recipe.parse(BASE | {"out": "elsewhere", "samples": {"every": 7}, "train": {"save_every": 3}})
    other = recipe.parse(BASE | {"train": {"seed": 1}})
    assert recipe.recipe_hash(plain) == recipe.recipe_hash(free)
    assert recipe.recipe_hash(plain) != recipe.recipe_hash(other)


def test_a_dumped_recipe_reads_back_equal():
    made = recipe.parse(BASE | {"validate": {"fraction": 0.1}, "memory": {"checkpoint": 1}})
    assert recipe.parse(made.dump()) == made


@pytest.mark.parametrize("file", sorted(recipe.folder().glob("*.yaml")), ids=lambda f: f.name)
def test_every_recipe_that_ships_parses_and_says_what_it_is(file):
    made = recipe.load(file)
    assert file.read_text().startswith("# ")
    assert made.resolution % 16 == 0
