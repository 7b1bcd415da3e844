"""The sanity check before step 1: the embedded bases pass, one with a wrong configuration is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model
from lorakit.quickstart import concept, shape_world
from lorakit.training import sanity_check
from tests import runs, tiny

TRAIN = {"steps": 1, "batch_size": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the kind that the embedded bases were trained on."""
    folder = tmp_path_factory.mktemp("data")
    for index, scene in enumerate(concept.regularization_scenes(2, seed=9)):
        storage.save_image(folder / f"{index}.png", shape_world.render_scene(scene))
        storage.write_text(folder / f"{index}.txt", shape_world.scene_caption(scene) + "\n")
    prepare_dataset(
        folder, PrepareOptions(resolution=64, size_multiple=16, batch_size=1, bucket_mode="square")
    )
    return folder


@pytest.mark.parametrize("base", base_model.EMBEDDED_BASES)
def test_the_embedded_bases_pass(base, data, tmp_path):
    run = runs.train(runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run", train=TRAIN))
    check = storage.read_json(run / "run.json")["objective_check"]
    assert check["passed"]
    errors = check["relative_errors"]
    assert errors.pop(check["prediction_type"]) < 0.1
    assert min(errors.values()) > 0.8


@pytest.mark.parametrize("wrong", ["epsilon"])
def test_a_base_with_a_wrong_prediction_type_is_refused_with_both_names(wrong, data, tmp_path):
    base = Path(shutil.copytree(base_model.EMBEDDED_FOLDER / "tiny-unet", tmp_path / "base"))
    file = base / "scheduler" / "scheduler_config.json"
    storage.write_json(file, storage.read_json(file) | {"prediction_type": wrong})
    recipe = runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run", train=TRAIN)
    with pytest.raises(ConfigError, match=f"says that it predicts {wrong}.*predictions are v_prediction"):
        runs.train(recipe)
    assert runs.steps_logged(tmp_path / "run") == 0


@pytest.mark.parametrize("row", ["sd15"])
def test_random_weights_are_a_warning(row, data, tmp_path):
    base = tiny.tiny_folder(row)
    file = runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run", train=TRAIN)
    run = runs.train(file)
    check = storage.read_json(run / "run.json")["objective_check"]
    assert not check["passed"]
    assert check["relative_errors"][check["prediction_type"]] > sanity_check.MAX_RELATIVE_ERROR
    assert "warning: the base model's own loss" in (run / "log.txt").read_text()
