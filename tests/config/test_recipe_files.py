"""What is not a recipe, but given as one, is named with what to do."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from lorakit.config.builtin_recipes import find_recipe
from lorakit.config.recipe import load_recipe
from lorakit.core.errors import ConfigError
from lorakit.core.path_kind import describe_path

KOHYA_TOML = 'pretrained_model_name_or_path = "model.safetensors"\n[network]\nnetwork_dim = 8\n'
AI_TOOLKIT = "job: extension\nconfig:\n  name: dog\n  process:\n  - type: sd_trainer\n    train: {lr: 1e-4}\n"
KOHYA_JSON = {"network_dim": 4, "learning_rate": 1e-4, "output_name": "x"}
ONE_TRAINER = {"training_method": "LORA", "base_model_name": "a/b", "lora_rank": 16}
SIMPLE_TUNER = {"--model_family": "flux", "--lora_rank": 16, "--data_backend_config": "backend.json"}
FOREIGN = {
    "kohya.toml": (KOHYA_TOML, "kohya's scripts"),
    "kohya.json": (json.dumps(KOHYA_JSON), "kohya's scripts"),
    "ai-toolkit.yaml": (AI_TOOLKIT, "ai-toolkit"),
    "onetrainer.json": (json.dumps(ONE_TRAINER), "OneTrainer"),
    "simpletuner.json": (json.dumps(SIMPLE_TUNER), "SimpleTuner"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_configuration_of_another_trainer_is_named_with_the_command_that_imports_it(tmp_path, name):
    text, trainer = FOREIGN[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / name)
    assert f"this is a configuration of {trainer}, not a recipe" in str(caught.value)
    assert f"lorakit recipe import {tmp_path / name}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["", "# a comment", "[broken", "a = 1\n"])
def test_a_toml_file_is_not_a_recipe(tmp_path, text):
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="TOML"):
        load_recipe(tmp_path / "r.toml")


def fill(folder, names):
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")


@pytest.mark.parametrize(
    ("names", "what", "remedy"),
    [
        (["a.JPG", "a.txt"], "a folder of images", "lorakit train RECIPE dataset="),
        (["10_dog/a.png"], "a folder of images", "lorakit train RECIPE dataset="),
        (["manifest.jsonl"], "a prepared dataset", "lorakit train RECIPE dataset="),
        (["model_index.json", "unet/config.json"], "a base model", "lorakit train RECIPE base="),
        (["adapter_config.json"], "a peft adapter", "init_from="),
        (["recipe.yaml", "run.json"], "the folder of a run", "lorakit resume"),
        (["notes.txt"], "a folder", "lorakit recipes"),
        ([], "an empty folder", "lorakit recipes"),
    ],
)
def test_a_folder_given_as_a_recipe_is_named_with_what_to_do(tmp_path, names, what, remedy):
    fill(tmp_path / "given", names)
    with pytest.raises(ConfigError) as caught:
        find_recipe(tmp_path / "given")
    assert f"this is {what}" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("a.safetensors", "a .safetensors file", "base="),
        ("model.ckpt", "a pickle file", ".safetensors"),
        ("prompts.jsonl", "a file of JSON lines", "samples.prompts="),
        ("manifest.jsonl", "the manifest of a dataset", "dataset="),
        ("photo.png", "an image", "lorakit recipes"),
    ],
)
def test_a_file_given_as_a_recipe_is_named_with_what_to_do(tmp_path, name, what, remedy):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        find_recipe(tmp_path / name)
    assert f"this is {what}" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", ["SD15", "sdlx", "flux1_dev", "qwen-imgae"])
def test_a_mistyped_name_finds_the_nearest_recipe(name):
    with pytest.raises(ConfigError, match=r"did you mean '(sd15|sdxl|flux1-dev|qwen-image)'"):
        find_recipe(name)


def test_a_mistyped_file_finds_the_nearest_file(tmp_path):
    (tmp_path / "dog-style.yaml").write_text("base: tiny-dit")
    with pytest.raises(ConfigError, match=r"did you mean '.*dog-style\.yaml'"):
        find_recipe(tmp_path / "dog-stile.yaml")


def test_a_base_model_given_as_a_recipe_is_answered_with_its_key():
    with pytest.raises(ConfigError, match="a base model is written as base=tiny-dit"):
        find_recipe("tiny-dit")


def test_paths_are_described_by_what_they_are(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert describe_path(tmp_path) == "a folder of images"
    assert describe_path(tmp_path / "a.png") == "an image"
    assert describe_path(tmp_path / "absent") is None
