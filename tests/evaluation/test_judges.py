"""The reference images of a run: of each subject its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import manifest
from lorakit.config import recipe as recipes
from lorakit.config.recipe import Recipe
from lorakit.core import checksums, storage
from lorakit.data.prompts import Prompt
from lorakit.evaluation.judges import load_run_references
from lorakit.evaluation.measure import score_variants
from lorakit.evaluation.sample_files import SampleFile
from lorakit.evaluation.score_table import BASE, Evaluation
from lorakit.evaluation.scoring_inputs import JudgeModels, VariantSamples
from lorakit.imaging import decode
from tests import runs


def recipe(dataset: Any, **changes: Any) -> Recipe:
    return recipes.parse_recipe({"base": "tiny-dit", "dataset": dataset, "out": "run"} | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folders of two subjects and of other images, none of which is in two of them."""
    root = tmp_path_factory.mktemp("concepts")
    for seed, trigger in enumerate(("sks", "ohwx", "others")):
        runs.make_dataset(root / trigger, 4, seed=seed, trigger=trigger if trigger != "others" else "")
    return root


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"sks": "sks"}, {"sks": 4}),
        ({"sks": "sks", "ohwx": "ohwx"}, {"sks": 4, "ohwx": 4}),
        ({"sks": "sks", "others": None}, {"sks": 4}),
        ({"sks": "zwx", "others": None}, {"zwx": 4}),  # no caption has it: all images of its folder
        ({"sks": None, "others": None}, {None: 8}),
    ],
)
def test_the_references_are_the_images_of_each_subject(folders, expected, data):
    dataset = [{"folder": str(data / name), "trigger": trigger} for name, trigger in folders.items()]
    references = load_run_references(recipe(dataset), data / "eval")
    assert {t: references.triggers.count(t) for t in references.triggers} == expected
    for name in references.names:
        assert Path(os.path.normpath(data / "eval" / str(references.folder) / name)).is_file()
    assert all(references.trained_on)


def test_held_out_references_are_not_trained_on(data):
    dataset = [{"folder": str(data / name), "trigger": name} for name in ("sks", "ohwx")]
    references = load_run_references(recipe(dataset, validate={"fraction": 0.25}), data / "eval")
    assert references.trained_on.count(False) == 2
    folder = load_run_references(recipe(str(data / "sks"), validate={"folder": "x"}), data / "eval")
    assert folder.names == ["0.png", "1.png", "2.png", "3.png"]
    assert folder.trained_on == [True] * 4


class _ColorClip:
    """A scorer whose features of an image are its mean color."""

    def describe(self) -> dict[str, Any]:
        return {"model": "color"}

    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        colors = [np.asarray(image.convert("RGB"), np.float32).mean((0, 1)) for image in images]
        return torch.nn.functional.normalize(torch.tensor(np.array(colors)), dim=-1)

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.ones(len(texts), 3), dim=-1)


@pytest.mark.parametrize(
    ("text", "color", "expected"),
    [
        ("a sks dog", "red", 1.0),
        ("a sks dog", "blue", 0.0),
        ("an ohwx cat", "blue", 1.0),
        ("an ohwx cat", "red", 0.0),
        ("a sks dog and an ohwx cat", "red", 0.5),  # of both subjects
    ],
)
def test_fidelity_is_measured_against_the_subject_of_the_prompt(text, color, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    dataset = []
    for trigger, shade in (("sks", "red"), ("ohwx", "blue")):
        runs.make_dataset(tmp_path / trigger, 2, trigger=trigger)
        for number in range(2):
            _paint(tmp_path / trigger, number, shade)
        dataset.append({"folder": str(tmp_path / trigger), "trigger": trigger})
    references = load_run_references(recipe(dataset), tmp_path / "eval")
    assert references.triggers == ["sks", "sks", "ohwx", "ohwx"]
    prompt = Prompt("p", text, text, seeds=(0,))
    file = storage.save_image(tmp_path / "p-0.png", Image.new("RGB", (8, 8), color))
    samples = [VariantSamples(BASE, [SampleFile(prompt, 0, file)])]
    evaluation = Evaluation("e", [prompt], [], triggers=("sks", "ohwx"))
    score_variants(evaluation, samples, JudgeModels(_ColorClip()), references, root=tmp_path, quiet=True)
    assert list(evaluation.variants[0].scores["clip_i"].values()) == pytest.approx([expected], abs=1e-6)
    assert evaluation.references is not None
    assert [unit.trigger for unit in evaluation.references.units] == ["sks", "ohwx"]  # images alike are one


def _paint(folder: Path, number: int, color: str) -> None:
    """Replace an image of a dataset by one of a single color, nearly."""
    image = Image.new("RGB", (16, 16), color)
    image.putpixel((0, 0), (number, 0, 0) if color == "red" else (0, 0, number))
    file = storage.save_image(folder / f"{number}.png", image)
    changed = {
        "sha256": checksums.sha256_file(file),
        "content_hash": decode.pixel_hash(image),
        "width": 16,
        "height": 16,
    }
    records = [replace(r, **changed) if r.file == file.name else r for r in manifest.load_manifest(folder)]
    manifest.save_manifest(folder, records)
