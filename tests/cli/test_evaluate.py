"""`lorakit eval` from end to end: a prompt set from a dataset, models by name, further metrics in the report,
and the table in Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from lorakit.evaluation.sample_files import SampleKey
from lorakit.models import base_model
from lorakit.quickstart import shape_world
from tests import runs
from tests.evaluation import embedded
from tests.evaluation.metrics.test_extra_metrics import VqaServer
from tests.network import servers

SMALL_CLIP = "ViT-S-32-alt"  # the smallest model that open_clip has by name
LOOKS = {"red": ("circle", "red"), "blue": ("heart", "blue")}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two prompts with two images each, named by id and seed, and the prompt file beside the folder."""
    root = tmp_path_factory.mktemp("commands") / "images"
    for name, (shape, colour) in LOOKS.items():
        for seed in (0, 1):
            scene = shape_world.jitter_scene(
                np.random.default_rng(seed), shape_world.Scene(shape, colour, "white")
            )
            storage.save_image(root / f"{name}-{seed}.png", shape_world.render_scene(scene, 96))
    rows = [{"id": name, "prompt": f'a {colour} {shape} "OK"'} for name, (shape, colour) in LOOKS.items()]
    storage.write_jsonl(root.parent / "p.jsonl", [{**row, "seeds": [0, 1]} for row in rows])
    return root


def scored(images: Path, out: Path, *more: str) -> score_table.Evaluation:
    command = ["eval", "score", str(images), "--prompts", str(images.parent / "p.jsonl"), "--out", str(out)]
    assert main.main([*command, "--quiet", *more]) == 0
    return score_table.load_evaluation(out)


def test_a_prompt_set_is_made_from_a_dataset_and_from_a_run(tmp_path, capsys):
    data = embedded.dataset(tmp_path / "data", 3)
    first, second = tmp_path / "p.jsonl", tmp_path / "q.jsonl"
    subject = ["--class-noun", "shape", "--trigger", "sks"]
    command = ["eval", "prompts", str(data), *subject, "--num-prompts", "8", "--out", str(first), "--json"]
    assert main.main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(first), "num_prompts": 20}
    prompts = load_prompts(first)
    assert sum(prompt.role(["sks"]) == "subject" for prompt in prompts) == 8
    runs.make_recipe(
        tmp_path / "run/recipe.yaml", "tiny-dit", data, tmp_path / "run", trigger="sks", class_noun="shape"
    )
    command = ["eval", "prompts", str(tmp_path / "run"), "--num-prompts", "8", "--out", str(second)]
    assert main.main(command) == 0  # trigger and class noun come from the run
    assert load_prompts(second) == prompts
    assert main.main(command) == 2  # an existing prompt file is not overwritten
    assert "exists" in capsys.readouterr().err


def test_any_clip_of_open_clip_scores_by_its_name(images, tmp_path):
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(SMALL_CLIP)
    weights = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    options = ("--clip-model", f"{SMALL_CLIP}/{weights}", "--image-encoder", "none")
    evaluation = scored(images, tmp_path / "out", *options)
    tokens = open_clip.get_tokenizer(SMALL_CLIP)
    model.eval()
    for key, file in evaluation.variants[0].files.items():
        with torch.no_grad(), Image.open(tmp_path / "out" / file) as image:
            image_features = F.normalize(model.encode_image(preprocess(image)[None]), dim=-1)
            text = next(p.prompt for p in evaluation.prompts if p.id == key.prompt_id)
            text_features = F.normalize(model.encode_text(tokens([text])), dim=-1)
        cosine = float((image_features * text_features).sum())
        assert evaluation.variants[0].scores["clip_t"][key] == pytest.approx(cosine, abs=1e-6)
    assert evaluation.settings["clip_model"]["model"] == SMALL_CLIP
    assert evaluation.settings["clip_model"]["pretrained"] == "weights.safetensors"


def test_further_metrics_are_in_the_report_and_are_not_requested_again(images, tmp_path):
    VqaServer.requests.clear()
    with servers.serving(VqaServer) as address:
        asked = ("--metric", f"vqascore={address}/v1#open", "--metric", f"clip_t={base_model.EMBEDDED_CLIP}")
        evaluation = scored(images, tmp_path / "out", "--clip-model", "embedded", *asked)
        assert len(VqaServer.requests) == 4
        scored(images, tmp_path / "again", "--clip-model", "embedded", *asked)
        assert len(VqaServer.requests) == 4
    (variant,) = evaluation.variants
    assert variant.scores["vqascore"] == pytest.approx(dict.fromkeys(variant.files, 0.75))
    assert variant.scores["clip_t@clip"] == pytest.approx(variant.scores["clip_t"], abs=1e-6)
    page = (tmp_path / "out/report.html").read_text()
    assert "VQAScore" in page
    assert "CLIP-T (clip)" in page
    assert "127.0.0.1" in page  # the server that received the images


@pytest.fixture(scope="module")
def evaluated(images, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wandb") / "scores"
    scored(images, root, "--clip-model", "embedded")
    return root


def test_the_table_in_wandb_has_a_row_for_each_image(evaluated, monkeypatch):
    """In the project of the run that is evaluated, and the entity of the environment."""
    monkeypatch.setenv("WANDB_PROJECT", "the-environment")
    monkeypatch.setenv("WANDB_ENTITY", "our-team")
    tracker = {"name": "wandb", "project": "our-project"}
    tree = {"base": "tiny-dit", "dataset": "d", "out": "o", "tracker": tracker}
    storage.write_json(evaluated.parent / "recipe.yaml", tree)
    assert main.main(["eval", "report", str(evaluated), "--wandb"]) == 0
    wandb.teardown()  # writes everything to disk, as the end of the program does
    (run,) = (evaluated / "wandb").glob("offline-run-*")
    (file,) = run.rglob("images_*.table.json")
    logged = json.loads(file.read_text())
    columns = {name: column for column, name in enumerate(logged["columns"])}
    evaluation = score_table.load_evaluation(evaluated)
    variant = evaluation.variants[0]
    assert len(logged["data"]) == len(variant.files) == 4
    for row in logged["data"]:
        key = SampleKey(row[columns["prompt_id"]], row[columns["seed"]])
        assert row[columns["clip_t"]] == pytest.approx(variant.scores["clip_t"][key])
        assert row[columns["prompt"]] == next(p.prompt for p in evaluation.prompts if p.id == key.prompt_id)
        assert row[columns["image"]] == "Image"  # the images are in the table's artifact
    recorded = next(run.glob("run-*.wandb")).read_bytes()
    assert b"our-project" in recorded
    assert b"our-team" in recorded
    assert b"the-environment" not in recorded
    assert all(f"/{Path(file).name}".encode() in recorded for file in variant.files.values())
    assert list(run.rglob("media/html/report_*.html"))


@pytest.fixture
def forgetful_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """End wandb's process afterwards: it would keep a test's settings for the tests that follow."""
    yield monkeypatch
    monkeypatch.undo()
    wandb.teardown(exit_code=1)


def test_if_wandb_cannot_be_reached_the_report_is_still_written(evaluated, forgetful_wandb, capsys):
    monkeypatch = forgetful_wandb
    (evaluated / "report.html").unlink()
    with servers.faulty("refused") as address:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
        assert main.main(["eval", "report", str(evaluated), "--wandb"]) == 1
    error = capsys.readouterr().err
    assert "error: wandb: " in error
    assert "the report is written" in error
    assert (evaluated / "report.html").is_file()


def test_a_prompt_set_of_a_run_on_several_concepts_has_prompts_of_each(tmp_path, capsys):
    concepts = [("sks", "dog"), ("ohwx", "cat")]
    dataset = []
    for seed, (trigger, noun) in enumerate(concepts):
        folder = runs.make_dataset(tmp_path / trigger, 2, seed=seed, trigger=trigger)
        dataset.append({"folder": str(folder), "trigger": trigger, "class_noun": noun})
    run = tmp_path / "run"
    runs.make_recipe(run / "recipe.yaml", "tiny-dit", tmp_path, run, dataset=dataset)

    def prompts(name: str, *more: str) -> list[str]:
        command = ["eval", "prompts", str(run), "--num-prompts", "8", "--out", str(tmp_path / name), *more]
        assert main.main(command) == 0
        return [prompt.prompt for prompt in load_prompts(tmp_path / name)]

    every = prompts("all.jsonl")
    assert [sum(trigger in text.split() for text in every) for trigger, _ in concepts] == [8, 8]
    one = prompts("one.jsonl", "--trigger", "ohwx")
    assert [sum(trigger in text.split() for text in one) for trigger, _ in concepts] == [0, 8]
    assert main.main(["eval", "prompts", str(run), "--trigger", "zwx", "--out", str(tmp_path / "no")]) == 2
    assert "the run has no such concept" in capsys.readouterr().err
