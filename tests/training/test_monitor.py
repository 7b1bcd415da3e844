"""Samples and validation during training: a growing contact sheet, CLIP-T, the validation loss; and that they
change no byte of the adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data import prompts
from lorakit.data.subjects import Subject
from lorakit.models import base_model, clip_score
from lorakit.training import monitor, sample_sheet
from tests import runs

ROWS = [
    {"id": "s", "prompt": "a sks heart", "score_text": "a red heart", "seeds": [0, 1]},
    {"id": "w", "prompt": "a red heart --w 96 --s 1", "seeds": [0], "kind": "class"},
    {"id": "o", "prompt": "a blue ring", "seeds": [0], "kind": "unrelated"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitor")
    runs.make_dataset(folder / "data", 6)
    storage.write_jsonl(folder / "p.jsonl", ROWS)
    return folder


def make(folder, name: str, **changes):
    samples = {
        "prompts": str(folder / "p.jsonl"),
        "every": 4,
        "num_inference_steps": 2,
        "clip_model": "embedded",
    }
    settings = {"samples": samples, "validate": {"fraction": 0.34, "every": 6}, "trigger": "sks"}
    return runs.make_recipe(
        folder / f"{name}.yaml", "tiny-unet", folder / "data", folder / name, **settings | changes
    )


@pytest.fixture(scope="module")
def run(folder):
    return runs.train(make(folder, "run"))


def test_clip_t_of_the_samples_is_in_the_metrics(run):
    rows = [row for row in storage.read_jsonl(run / "metrics.jsonl") if "clip_t" in row]
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    clip = clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    for row in rows:
        samples = sample_sheet.step_folder(run, row["step"])
        with Image.open(samples / "w-0.png") as wide:
            assert wide.size == (96, 64)
        images = [Image.open(samples / name) for name in ("s-0.png", "s-1.png", "o-0.png")]
        expected = clip.clip_t(images, ["a red heart", "a red heart", "a blue ring"])
        assert row["clip_t"] == pytest.approx(expected[:2].mean(), abs=1e-5)
        assert row["clip_t_unrelated"] == pytest.approx(expected[2], abs=1e-5)


def test_the_contact_sheet_has_a_column_for_each_sampled_step(run, folder):
    with Image.open(run / "samples" / sample_sheet.CONTACT_SHEET_FILE) as sheet:
        four_columns = sheet.size
        pixels = np.asarray(sheet.convert("RGB"))
    shorter = runs.train(make(folder, "short"), "train.steps=4")
    with Image.open(shorter / "samples" / sample_sheet.CONTACT_SHEET_FILE) as sheet:
        two_columns = sheet.size
    cell = sample_sheet.CELL_PIXELS
    pitch = cell + max(4, cell // 24)
    assert four_columns == (two_columns[0] + 2 * pitch, two_columns[1])
    with Image.open(sample_sheet.step_folder(run, 12) / "o-0.png") as image:
        enlarged = np.asarray(image.resize((cell, cell)), np.int16)
    corner = pixels[-pitch : -pitch + cell, -pitch : -pitch + cell].astype(np.int16)
    assert np.abs(corner - enlarged).mean() < 12  # the last prompt at the last step is at the bottom right


def test_the_validation_loss_is_measured_at_its_steps(run):
    rows = storage.read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 6, 12]
    assert "CLIP-T of samples" in (run / "report.html").read_text()


def test_a_run_with_samples_and_validation_gives_the_same_adapter_as_one_without(run, folder):
    plain = runs.train(make(folder, "plain", samples={}, validate={"fraction": 0.34, "every": 1000}))
    assert (plain / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_metrics_that_are_logged_are_not_logged_again_after_a_resume(run, folder):
    (run / "adapter.safetensors").unlink()
    record = json.loads((run / "run.json").read_text())
    storage.write_json(run / "run.json", record | {"status": "interrupted"})
    for file in sample_sheet.step_folder(run, 12).iterdir():
        file.unlink()
    runs.train(folder / "run.yaml")
    rows = [row["step"] for row in storage.read_jsonl(run / "metrics.jsonl") if "clip_t" in row]
    assert rows == [0, 4, 8, 12]


def test_an_unknown_clip_model_is_refused_before_the_first_step(folder):
    samples = {"prompts": str(folder / "p.jsonl"), "clip_model": "ViT-Z/openai"}
    file = make(folder, "wrong", samples=samples)
    with pytest.raises(ConfigError, match="no model 'ViT-Z'"):
        runs.train(file)
    rows = folder / "wrong" / "metrics.jsonl"
    assert not rows.exists() or not rows.read_text()


def test_a_prompt_without_a_score_text_is_scored_without_the_trigger():
    prompt = prompts.Prompt("a", "a sks dog in snow", "a sks dog in snow")
    assert monitor._scoring_text(prompt, [Subject("sks", "dog")]) == "a dog in snow"
    assert recipes.SamplingConfig().clip_model is None
