"""What is looked at during training: samples that grow into a sheet, CLIP-T, the validation loss; and that no
look changes the adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data import prompts
from lorakit.models import base_model, clip_score
from lorakit.training import validation
from tests import runs

ROWS = [
    {"id": "s", "prompt": "a sks heart", "score_text": "a red heart", "seeds": [0, 1]},
    {"id": "o", "prompt": "a blue ring", "seeds": [0], "kind": "unrelated"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    runs.make_dataset(folder / "data", 6)
    storage.write_jsonl(folder / "p.jsonl", ROWS)
    return folder


def make(place, name: str, **changes):
    settings = {
        "samples": {"prompts": str(place / "p.jsonl"), "every": 4, "steps": 2, "clip": "embedded"},
        "validate": {"fraction": 0.34, "every": 6},
        "trigger": "sks",
    }
    return runs.make_recipe(
        place / f"{name}.yaml", "tiny-unet", place / "data", place / name, **settings | changes
    )


@pytest.fixture(scope="module")
def run(place):
    return runs.train(make(place, "run"))


def test_clip_t_of_the_samples_goes_into_the_metrics(run, place):
    rows = [row for row in storage.read_jsonl(run / "metrics.jsonl") if "clip_t" in row]
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    clip = clip_score.ClipScorer.local(base_model.EMBEDDED_CLIP)
    for row in rows:
        folder = validation.step_folder(run, row["step"])
        shots = [Image.open(folder / name) for name in ("s-0.png", "s-1.png", "o-0.png")]
        expected = clip.clip_t(shots, ["a red heart", "a red heart", "a blue ring"])
        assert row["clip_t"] == pytest.approx(expected[:2].mean(), abs=1e-5)
        assert row["clip_t_unrelated"] == pytest.approx(expected[2], abs=1e-5)


def test_the_contact_sheet_has_grown_to_a_column_for_each_step(run, place):
    with Image.open(run / "samples" / validation.CONTACT_SHEET_FILE) as sheet:
        three = sheet.size
        last = np.asarray(sheet.convert("RGB"))
    shorter = runs.train(make(place, "short"), "train.steps=4")
    with Image.open(shorter / "samples" / validation.CONTACT_SHEET_FILE) as sheet:
        one = sheet.size
    pitch = validation.SHEET_CELL + max(4, validation.SHEET_CELL // 24)
    assert three == (one[0] + 2 * pitch, one[1])
    with Image.open(validation.step_folder(run, 12) / "o-0.png") as picture:
        enlarged = np.asarray(picture.resize((128, 128)), np.int16)
    corner = last[-pitch : -pitch + 128, -pitch : -pitch + 128].astype(np.int16)
    assert np.abs(corner - enlarged).mean() < 12  # the last prompt at the last step is at the bottom right


def test_the_validation_loss_is_a_curve(run):
    rows = storage.read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 6, 12]
    assert "CLIP-T of samples" in (run / "report.html").read_text()


def test_a_run_with_looks_gives_the_same_adapter_as_one_without(run, place):
    plain = runs.train(make(place, "plain", samples={}, validate={"fraction": 0.34, "every": 1000}))
    assert (plain / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_looked_at_again_after_a_resume_nothing_is_told_twice(run, place):
    (run / "adapter.safetensors").unlink()
    record = json.loads((run / "run.json").read_text())
    storage.write_json(run / "run.json", record | {"status": "interrupted"})
    for file in validation.step_folder(run, 12).iterdir():
        file.unlink()
    runs.train(place / "run.yaml")
    rows = [row["step"] for row in storage.read_jsonl(run / "metrics.jsonl") if "clip_t" in row]
    assert rows == [0, 4, 8, 12]


def test_a_clip_that_is_none_is_said_before_the_first_step(place):
    samples = {"prompts": str(place / "p.jsonl"), "clip": "ViT-Z/openai"}
    file = make(place, "wrong", samples=samples)
    with pytest.raises(ConfigError, match="no model 'ViT-Z'"):
        runs.train(file)
    rows = place / "wrong" / "metrics.jsonl"
    assert not rows.exists() or not rows.read_text()


def test_the_trigger_is_not_scored_where_a_prompt_has_no_text_of_its_own():
    prompt = prompts.Prompt("a", "a sks dog in snow", "a sks dog in snow")
    assert validation._scoring_text(prompt, prompts.Subject("sks", "dog")) == "a dog in snow"
    assert recipe.SamplingConfig().clip is None
