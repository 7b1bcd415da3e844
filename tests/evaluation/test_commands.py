"""`lorakit eval` from end to end where a single module cannot tell: a prompt set of a dataset, models by
name, further scores in the report, and the table in Weights & Biases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import wandb
from PIL import Image
from safetensors.torch import save_file

from lorakit.cli import main
from lorakit.core import storage
from lorakit.data.prompts import load_prompts
from lorakit.evaluation import score_table
from lorakit.models import base_model
from lorakit.quickstart import shape_world
from tests import runs
from tests.evaluation import embedded
from tests.evaluation.test_extra_metrics import Answering
from tests.network import servers

SMALL_CLIP = "ViT-S-32-alt"  # the smallest model that open_clip has by name
LOOKS = {"red": ("circle", "red"), "blue": ("heart", "blue")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two prompts with two pictures each, named by id and seed, and the prompt file beside the folder."""
    root = tmp_path_factory.mktemp("commands") / "pictures"
    for name, (shape, colour) in LOOKS.items():
        for seed in (0, 1):
            scene = shape_world.jitter_scene(
                np.random.default_rng(seed), shape_world.Scene(shape, colour, "white")
            )
            storage.save_image(root / f"{name}-{seed}.png", shape_world.render_scene(scene, 96))
    rows = [{"id": name, "prompt": f'a {colour} {shape} "OK"'} for name, (shape, colour) in LOOKS.items()]
    storage.write_jsonl(root.parent / "p.jsonl", [{**row, "seeds": [0, 1]} for row in rows])
    return root


def scored(pictures: Path, out: Path, *more: str) -> score_table.Evaluation:
    given = ["eval", "score", str(pictures), "--prompts", str(pictures.parent / "p.jsonl"), "--out", str(out)]
    assert main.main([*given, "--quiet", *more]) == 0
    return score_table.load_evaluation(out)[1]


def test_a_prompt_set_is_made_from_a_dataset_and_from_a_run(tmp_path, capsys):
    data = embedded.dataset(tmp_path / "data", 3)
    given = ["eval", "prompts", str(data), "--class-noun", "shape", "--trigger", "sks", "--count", "8"]
    assert main.main([*given, "--out", str(tmp_path / "p.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path / "p.jsonl"), "prompts": 20}
    made = load_prompts(tmp_path / "p.jsonl")
    assert sum(prompt.role("sks") == "subject" for prompt in made) == 8
    runs.make_recipe(
        tmp_path / "run/recipe.yaml", "tiny-dit", data, tmp_path / "run", trigger="sks", class_noun="shape"
    )
    given = ["eval", "prompts", str(tmp_path / "run"), "--count", "8", "--out", str(tmp_path / "q.jsonl")]
    assert main.main(given) == 0  # trigger and class noun are the run's
    assert load_prompts(tmp_path / "q.jsonl") == made
    assert main.main(given) == 2  # a prompt file that is there is never written over
    assert "exists" in capsys.readouterr().err


def test_any_clip_of_open_clip_scores_by_its_name(pictures, tmp_path):
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(SMALL_CLIP)
    weights = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    options = ("--clip", f"{SMALL_CLIP}/{weights}", "--dino", "none")
    made = scored(pictures, tmp_path / "out", *options)
    tokens = open_clip.get_tokenizer(SMALL_CLIP)
    model.eval()
    for key, file in made.arms[0].files.items():
        with torch.no_grad(), Image.open(tmp_path / "out" / file) as picture:
            seen = F.normalize(model.encode_image(preprocess(picture)[None]), dim=-1)
            text = next(p.prompt for p in made.prompts if p.id == key[0])
            said = F.normalize(model.encode_text(tokens([text])), dim=-1)
        assert made.arms[0].scores["clip_t"][key] == pytest.approx(float((seen * said).sum()), abs=1e-6)
    assert made.settings["clip"]["model"] == SMALL_CLIP
    assert made.settings["clip"]["pretrained"] == "weights.safetensors"


def test_further_scores_come_into_the_report_and_are_not_asked_for_again(pictures, tmp_path):
    Answering.asked.clear()
    with servers.serving(Answering) as address:
        asked = ("--also", f"vqascore={address}/v1#open", "--also", f"clip={base_model.EMBEDDED_CLIP}")
        made = scored(pictures, tmp_path / "out", "--clip", "embedded", *asked)
        assert len(Answering.asked) == 4
        scored(pictures, tmp_path / "again", "--clip", "embedded", *asked)
        assert len(Answering.asked) == 4
    (arm,) = made.arms
    assert arm.scores["vqascore"] == pytest.approx(dict.fromkeys(arm.files, 0.75))
    assert arm.scores["clip_t@clip"] == pytest.approx(arm.scores["clip_t"], abs=1e-6)
    page = (tmp_path / "out/report.html").read_text()
    assert "VQAScore" in page
    assert "CLIP-T (clip)" in page
    assert "127.0.0.1" in page  # where the pictures went is told


@pytest.fixture(scope="module")
def evaluated(pictures, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wandb") / "scores"
    scored(pictures, root, "--clip", "embedded")
    return root


def test_the_table_in_wandb_has_a_row_a_picture(evaluated):
    assert main.main(["eval", "report", str(evaluated), "--wandb"]) == 0
    wandb.teardown()  # as the end of the program does: only then all is on disk
    (run,) = (evaluated / "wandb").glob("offline-run-*")
    (file,) = run.rglob("pictures_*.table.json")
    logged = json.loads(file.read_text())
    place = {name: column for column, name in enumerate(logged["columns"])}
    _, made = score_table.load_evaluation(evaluated)
    arm = made.arms[0]
    assert len(logged["data"]) == len(arm.files) == 4
    for row in logged["data"]:
        key = row[place["prompt_id"]], row[place["seed"]]
        assert row[place["clip_t"]] == pytest.approx(arm.scores["clip_t"][key])
        assert row[place["prompt"]] == next(p.prompt for p in made.prompts if p.id == key[0])
        assert row[place["picture"]] == "Image"  # the pictures themselves are in the table's artifact
    recorded = next(run.glob("run-*.wandb")).read_bytes()
    assert all(f"/{Path(file).name}".encode() in recorded for file in arm.files.values())
    assert list(run.rglob("media/html/report_*.html"))


def test_wandb_that_cannot_be_reached_is_one_error_and_the_report_is_there(evaluated, monkeypatch, capsys):
    (evaluated / "report.html").unlink()
    with servers.bad("refused") as address:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
        assert main.main(["eval", "report", str(evaluated), "--wandb"]) == 1
    error = capsys.readouterr().err
    assert "error: wandb: " in error
    assert "the report is written" in error
    assert (evaluated / "report.html").is_file()
