"""One validation loss: the evaluation of a run measures what its training wrote into metrics.jsonl."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorakit import manifest
from lorakit.cli import main
from lorakit.config import recipe as recipes
from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.evaluation.run_sampling import load_run_pipeline
from lorakit.evaluation.validation_loss import RunValidation
from lorakit.sampling.pipeline import SamplingOptions
from lorakit.training import checkpoint
from tests import runs, tiny
from tests.imaging import videos
from tests.long_tier import some_long
from tests.masked_data import add_masks

BF16 = {"train": {"steps": 2, "batch_size": 2, "save_every": 1, "precision": "bf16"}}
SLIDER = {"target_prompt": "a ring", "positive_prompt": "a red ring", "negative_prompt": "a blue ring"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": ("tiny-dit", BF16),
    "nf4": ("tiny-dit", BF16 | {"memory": {"quantize": "nf4"}}),
    "masks": (
        "tiny-unet",
        {"objective": {"masked_loss": {"unmasked_weight": 0.1}}},
    ),
    "grayed masks": ("tiny-unet", {"objective": {"masked_loss": {"gray_unmasked": True}}}),
    "objective": ("tiny-dit", {"objective": {"huber": {}, "timesteps": "mode", "noise_offset": 0.1}}),
    "text encoder": ("sd15", {"adapter": {"rank": 2, "text_encoder": True}}),
    "slider": ("tiny-unet", {"slider": SLIDER}),
    "two experts": ("wan", {"train": BF16["train"] | {"batch_size": 1, "accumulate": 2}}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_masks(runs.make_dataset(tmp_path_factory.mktemp("data")), every=1)


def train(folder: Path, data: Path, base: str, **changes: Any) -> Path:
    """A run of two steps that holds two of six images out and validates at every step."""
    settings = {
        "optimizer": {"lr": 1e-2},
        "train": {"steps": 2, "batch_size": 2, "save_every": 1, "precision": "fp32"},
        "validate": {"fraction": 0.34, "every": 1},
    }
    source = base if base.startswith("tiny-") else tiny.tiny_folder(base)
    return runs.train(runs.make_recipe(folder / "r.yaml", source, data, folder / "run", **settings | changes))


def assert_equal_losses(run: Path) -> RunValidation:
    """Compare the evaluation's losses with metrics.jsonl, for the base model and every checkpoint."""
    rows = storage.read_jsonl(run / "metrics.jsonl")
    logged = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    recipe: Recipe = recipes.load_recipe(run / "recipe.yaml")
    files = {step: checkpoint.step_folder(run, step) / checkpoint.ADAPTER_FILE for step in logged if step}
    pipeline = load_run_pipeline(recipe, files[min(files)], SamplingOptions())
    validation = RunValidation(recipe, pipeline)
    measured = {}
    with pipeline.adapter_disabled():
        measured[0] = validation.image_losses()["validation"]
    for step, file in files.items():
        pipeline.load_adapter(file)
        measured[step] = validation.image_losses()["validation"]
    means = {step: sum(losses) / len(losses) for step, losses in measured.items()}
    assert means == pytest.approx(logged, rel=1e-12)  # the sum is in another order
    assert len(set(logged.values())) == len(logged) > 1
    return validation


@pytest.mark.parametrize("name", some_long(CASES, "bf16", "two experts"))
def test_the_evaluation_measures_the_loss_that_the_training_logged(name, data, tmp_path):
    base, changes = CASES[name]
    validation = assert_equal_losses(train(tmp_path, data, base, **changes))
    losses = validation.image_losses()
    assert len(losses["validation"]) == len(losses["train"]) == 2


def test_of_videos_too(tmp_path):
    """Videos of five frames beside images."""
    data = runs.make_dataset(tmp_path / "data", 3)
    for name in ("a", "b", "c"):
        (data / f"{name}.mp4").write_bytes(videos.encode(5, size=(96, 64), rate=16, seed=ord(name)))
        (data / f"{name}.txt").write_text(f"a sks video {name}")
    for index in range(3):
        (data / f"{index}.txt").write_text(f"a sks picture {index}")
    command = ["data", "prepare", str(data), "--videos", "--resolution", "64", "--quiet", "--no-report"]
    assert main.main(command) == 0
    train_settings = BF16["train"] | {"batch_size": 1}
    validate = {"fraction": 0.5, "every": 1}
    run = train(tmp_path, data, "wan", frames=5, train=train_settings, validate=validate)
    validation = assert_equal_losses(run)
    held_out = validation.losses["validation"].data.items
    assert any(len(item.frame_indices) == 5 for item in held_out)


@pytest.mark.parametrize("kind", ["a folder", "two concepts", "repeats and copies"])
def test_of_other_ways_to_hold_images_out(kind, tmp_path):
    """Each held-out image is measured once, in the training and in the evaluation."""
    folder = runs.make_dataset(tmp_path / "data")
    dataset: Any = str(folder)
    validate: dict[str, Any] = {"fraction": 0.34, "every": 1}
    if kind == "a folder":
        validate = {"folder": str(runs.make_dataset(tmp_path / "other", 2, seed=1)), "every": 1}
    if kind == "two concepts":
        second = runs.make_dataset(tmp_path / "second", 4, seed=1, trigger="ohwx")
        dataset = [
            {"folder": str(folder), "trigger": "sks"},
            {"folder": str(second), "repeats": 3, "weight": 2},
        ]
        validate["fraction"] = 0.2
    if kind == "repeats and copies":
        records = [dataclasses.replace(r, repeats=4) for r in manifest.load_manifest(folder)]
        shutil.copy(folder / "0.png", folder / "copy.png")
        manifest.save_manifest(folder, [*records, dataclasses.replace(records[0], file="copy.png")])
    run = train(tmp_path, folder, "tiny-dit", dataset=dataset, validate=validate)
    losses = assert_equal_losses(run).image_losses()
    assert len(losses["validation"]) == len(losses["train"]) == 2


def test_deleted_cache_entries_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "first"))
    run = train(tmp_path, runs.make_dataset(tmp_path / "data"), "tiny-dit", **BF16)
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "second"))
    assert_equal_losses(run)


def test_a_run_that_held_nothing_out_has_no_validation_loss(data, tmp_path):
    run = train(tmp_path, data, "tiny-dit", validate={})
    recipe = recipes.load_recipe(run / "recipe.yaml")
    pipeline = load_run_pipeline(recipe, run / "adapter.safetensors", SamplingOptions())
    assert RunValidation(recipe, pipeline).is_empty
