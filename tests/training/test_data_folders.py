"""The folders of images of a recipe: checks against each other, absolute paths, fingerprints, preparation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lorakit.config import recipe as recipes
from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training import data_folders
from tests import runs

OUT = "run"


def recipe(dataset: Any, **changes: Any) -> Recipe:
    return recipes.parse_recipe({"base": "tiny-dit", "dataset": dataset, "out": OUT} | changes)


def concepts(*folders: str, **first: str) -> list[dict[str, str]]:
    return [{"folder": folder} | (first if number == 0 else {}) for number, folder in enumerate(folders)]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The working folder, with folders of images in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a/inner", "classes"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "changes", "words"),
    [
        (concepts("a", "a"), {}, "two keys name the same folder"),
        (concepts("a", "./b/../a"), {}, "two keys name the same folder"),
        (concepts("b", "link"), {}, "two keys name the same folder"),
        (concepts("a", "a/inner"), {}, "one of two folders of images is inside the other"),
        (concepts("a/inner", "b", "a"), {}, "one of two folders of images is inside the other"),
        (concepts("b", "a", class_images="a/inner"), {}, "one of two folders of images is inside the other"),
        ("a", {"class_images": "a/inner"}, "one of two folders of images is inside the other"),
        ("a", {"validate": {"folder": "a"}}, "two keys name the same folder"),
        ("a", {"validate": {"folder": "a/inner"}}, "one of two folders of images is inside the other"),
        (concepts("a", "missing"), {}, "there is no such dataset folder"),
        ("a", {"validate": {"folder": "missing"}}, "there is no such dataset folder"),
        (concepts("a", "b"), {"out": "b/run"}, "one of `out` and the dataset is inside the other"),
        ("a", {"out": "b", "validate": {"folder": "b"}}, "one of `out` and the dataset is inside the other"),
    ],
)
def test_folders_that_are_missing_or_inside_each_other_are_refused(dataset, changes, words, folders):
    if words == "two keys name the same folder" and dataset[-1] == {"folder": "link"}:
        try:
            os.symlink(folders / "b", folders / "link")
        except OSError:
            pytest.skip("no symbolic links here")
    loaded = recipe(dataset, **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        data_folders.check_data_folders(loaded, loaded.out)
    where = str(caught.value)
    assert "dataset" in where or "validate.folder" in where


def test_folders_side_by_side_are_accepted(folders):
    dataset = [{"folder": name, "class_noun": "dog", "class_images": "classes"} for name in ("a", "b")]
    data_folders.check_data_folders(recipe(dataset), Path(OUT))
    data_folders.check_data_folders(recipe("a", class_images="classes", validate={"folder": "b"}), Path(OUT))


def test_every_path_becomes_absolute(folders):
    dataset = concepts("a", "b", class_images="classes")
    loaded = recipe(dataset, validate={"folder": "b"})
    absolute = loaded.model_copy(update=data_folders.absolute_data_folders(loaded))
    paths = data_folders.all_folders(absolute)
    assert paths.keys() == data_folders.all_folders(loaded).keys()
    assert all(path.is_absolute() for path in paths.values())
    single = recipe("a", class_images="classes")
    assert single.model_copy(update=data_folders.absolute_data_folders(single)).dataset == folders / "a"


def test_each_plain_folder_is_prepared_with_the_words_of_its_concept(folders):
    runs.make_dataset(folders / "b")  # has a manifest
    rex = {
        "folder": "a",
        "trigger": "sks",
        "class_noun": "dog",
        "captions": "{trigger}",
        "class_images": "classes",
    }
    (folders / "other").mkdir()
    prepared = list(
        data_folders.unprepared_concepts(recipe([rex, {"folder": "b"}], validate={"folder": "other"}))
    )
    assert [(str(c.folder), c.template_caption) for c in prepared] == [
        ("a", "sks"),
        ("classes", "a photo of dog"),
        ("other", None),  # of which concept its images are is not known
    ]
    single = recipe("a", trigger="sks", class_noun="dog", validate={"folder": "other"})
    assert [c.template_caption for c in data_folders.unprepared_concepts(single)] == [
        "a photo of sks dog"
    ] * 2


def test_images_of_a_plain_folder_get_the_captions_of_their_concept(folders, monkeypatch):
    from PIL import Image

    from data_tools.prepare_for_training import prepare_for_training
    from lorakit import manifest

    for number, name in enumerate(("a", "b", "classes")):
        color = (80 * number, 120, 200)
        storage.save_image(folders / name / "0.png", Image.new("RGB", (64, 64), color))
    dataset = [
        {"folder": "b", "trigger": "sks", "class_noun": "dog", "class_images": "classes"},
        {"folder": "a/inner", "trigger": "ohwx", "captions": "a drawing by {trigger}"},
    ]
    storage.save_image(folders / "a/inner/10_old words/1.png", Image.new("RGB", (64, 64), "red"))
    storage.save_image(folders / "a/inner/2.png", Image.new("RGB", (64, 64), "green"))
    loaded = recipe(dataset, resolution=64)
    for concept in data_folders.unprepared_concepts(loaded):
        prepare_for_training(concept, loaded)
    captions = {
        f"{folder}/{record.file}": (record.caption, record.repeats)
        for folder in ("b", "a/inner", "classes")
        for record in manifest.load_manifest(folders / folder)
    }
    assert captions == {
        "b/0.png": ("a photo of sks dog", 1),
        "a/inner/10_old words/1.png": ("old words", 10),
        "a/inner/2.png": ("a drawing by ohwx", 1),
        "classes/0.png": ("a photo of dog", 1),
    }


@pytest.mark.parametrize("changed", ["nothing", "an image", "the order", "a missing key"])
def test_the_same_data_is_recognized_wherever_it_lies(changed, folders):
    for seed, name in enumerate(("x", "y")):
        runs.make_dataset(folders / name, 3, seed=seed)
    loaded = recipe(concepts("x", "y"))
    inputs = {key: values[1] for key, values in data_folders.possible_fingerprints(loaded).items()}
    inputs["base"] = "0"
    if changed == "a missing key":
        inputs["dataset.0.class_images"] = "0"
    os.rename(folders / "y", folders / "moved")
    if changed == "an image":
        runs.make_dataset(folders / "moved", 3, seed=5)
    names = ("moved", "x") if changed == "the order" else ("x", "moved")
    same = data_folders.has_same_data(recipe(concepts(*names)), inputs)
    assert same == (changed == "nothing")
