"""Training from the command line: each mistake is one clear error with the right exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from lorakit import manifest
from lorakit.cli import main
from lorakit.core import storage
from lorakit.training import checkpoint
from tests import runs, tiny
from tests.long_tier import long


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def data(tmp_path):
    return runs.make_dataset(tmp_path / "data", 3)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"optimiser": {}}, 2, "did you mean 'optimizer'"),
        ({"base": "tiny-ditt"}, 2, "there is no such base model"),
        ({"base": "no/such/folder"}, 2, "there is no such base model"),
        ({"base": "model.ckpt"}, 2, "there is no such file"),
        ({"dataset": "nowhere"}, 2, "nowhere"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(capsys, tmp_path, data, changes, code, words):
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", **changes)
    got, out, err = run(capsys, "train", str(file))
    assert got == code
    assert words in err
    assert err.startswith("error: ")
    assert "Traceback" not in err + out
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_is_refused(capsys):
    code, _, err = run(capsys, "train", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in err


def test_a_base_model_without_an_index_is_refused(capsys, tmp_path, data):
    (tmp_path / "base").mkdir()
    file = runs.make_recipe(tmp_path / "r.yaml", tmp_path / "base", data, tmp_path / "run")
    code, _, err = run(capsys, "train", str(file))
    assert code == 2
    assert "model_index.json" in err


def test_a_dataset_without_a_usable_image_is_refused(capsys, tmp_path):
    for name in ("empty", "corrupt"):
        (tmp_path / name).mkdir()
    (tmp_path / "corrupt/a.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    (tmp_path / "corrupt/a.txt").write_text("a dog")
    for name in ("empty", "corrupt"):
        file = runs.make_recipe(tmp_path / f"{name}.yaml", "tiny-dit", tmp_path / name, tmp_path / "run")
        code, _, err = run(capsys, "train", str(file))
        assert code == 3, err
        assert name in err
        assert "Traceback" not in err


@pytest.mark.parametrize("place", ["data", "data/run", "full"])
def test_an_output_folder_that_would_mix_with_other_files_is_refused(capsys, tmp_path, data, place):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / place)
    code, _, err = run(capsys, "train", str(file))
    assert code == 2
    assert "out" in err
    assert (tmp_path / "full/mine.txt").read_text() == "mine"


@long
def test_a_plain_folder_of_photos_is_prepared_trained_and_exported(capfd, tmp_path):
    """`lorakit train` with its child process; then a new run after an image has changed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(80, 80), (120, 80), (80, 120)]):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.jpg")
    names = {"trigger": "sks", "class_noun": "dog", "export": ["comfyui"]}
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-unet", photos, tmp_path / "run", **names)
    code, _, err = run(capfd, "train", str(file), "train.steps=4", "train.save_every=2")
    assert code == 0, err
    assert (tmp_path / "run/report.html").is_file()
    assert len(list((tmp_path / "run/exports").glob("*.safetensors"))) == 1
    record = storage.read_json(tmp_path / "run/run.json")
    assert (record["status"], record["num_images"]) == ("done", 3)
    assert {r.caption for r in manifest.load_manifest(photos)} == {"a photo of sks dog"}
    assert len({r.bucket for r in manifest.load_manifest(photos)}) == 3
    Image.new("RGB", (80, 80)).save(photos / "1.jpg")
    code, _, err = run(capfd, "train", str(file), f"out={tmp_path / 'other'}")
    assert code == 3
    assert "1.jpg" in err
    assert "Traceback" not in err


def test_resuming_a_folder_that_is_not_a_run_is_refused(capsys, tmp_path):
    code, _, err = run(capsys, "resume", str(tmp_path))
    assert code == 2
    assert "not a run" in err


def test_a_consumer_that_cannot_read_the_family_is_refused_before_training(capsys, tmp_path, data):
    from lorakit.config import recipe
    from lorakit.core.errors import ConfigError
    from lorakit.training import run_plan

    base = tiny.tiny_folder("sana")
    file = runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run", export=["a1111"])
    with pytest.raises(ConfigError, match="a1111"):
        run_plan.plan_training(recipe.load_recipe(file), lambda text: None)


def test_families_recipes_and_doctor_answer_as_json(capsys):
    code, out, _ = run(capsys, "families", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} >= {"sd15", "sd3", "flux2"}
    code, out, _ = run(capsys, "recipes", "--json")
    assert code == 0
    assert len(json.loads(out)) >= 5
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0, found
    assert found["packages"]["torch"]
    assert found["embedded_bases"] == {"tiny-unet": True, "tiny-dit": True}
    assert found["memory_gib"] > 0
    code, out, _ = run(capsys, "doctor")
    assert "nothing is missing" in out


def test_doctor_names_what_is_missing_with_the_remedy(monkeypatch, capsys):
    from lorakit.cli import doctor

    environment = doctor.inspect_environment()
    environment["packages"]["peft"] = None
    environment["free_gib"] = 0.5
    lines = doctor.find_problems(environment)
    assert any("peft is not installed" in line for line in lines)
    assert any("LORAKIT_CACHE" in line for line in lines)
    monkeypatch.setattr(doctor, "inspect_environment", lambda **_: environment)
    code, out, _ = run(capsys, "doctor")
    assert code == 2
    assert "PROBLEM: peft is not installed" in out


def test_a_signal_to_lorakit_train_reaches_the_trainer_which_commits(tmp_path, data):
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-unet", data, tmp_path / "run")
    command = [sys.executable, "-m", "lorakit", "train", str(file), "train.steps=5000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while runs.steps_logged(tmp_path / "run") < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "which is saved" in err
    assert "Traceback" not in err
    assert checkpoint.checkpoint_steps(tmp_path / "run")[-1] == runs.steps_logged(tmp_path / "run")
