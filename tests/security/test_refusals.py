"""Contradictions in a recipe, to the base model or to an earlier start are refused before any model loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, LorakitError
from lorakit.models import base_model
from lorakit.models.families import pipeline_folder as folders
from lorakit.training import run_changes, run_folder, run_plan
from lorakit.training.run_folder import RunFolder
from tests import runs, tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 3)


def parsed(data: Path, out: Path, base: str | Path = "tiny-dit", **changes: Any) -> recipe.Recipe:
    tree = {"base": str(base), "dataset": str(data), "out": str(out), "resolution": 64, "export": []}
    return recipe.parse_recipe(tree | changes)


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading any network fails the test."""

    def load(*arguments: object) -> None:
        raise AssertionError(f"a model was loaded: {arguments}")

    monkeypatch.setattr(folders, "load_network", load)


def start(chosen: recipe.Recipe) -> None:
    """Do what a run does before it loads a model."""
    run = RunFolder(chosen.out)
    run.check_paths(chosen)
    inputs = run_plan.plan_training(chosen, lambda text: None).input_hashes
    run_changes.start_or_resume(run, chosen, {**inputs, "num_processes": 1})
    run.update_record(checkpoint_step=1)


def refusal(chosen: recipe.Recipe) -> str:
    with pytest.raises(LorakitError) as caught:
        start(chosen)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("base", base_model.EMBEDDED_BASES)
def test_a_resolution_that_the_base_cannot_generate_is_refused(base, data, tmp_path, no_models):
    text = refusal(parsed(data, tmp_path / "run", base, resolution=70))
    assert "70 does not suit the base" in text
    assert "use 64 or" in text
    assert not (tmp_path / "run").exists()


def test_an_export_that_no_consumer_can_load_is_refused(data, tmp_path, no_models):
    text = refusal(parsed(data, tmp_path / "run", str(tiny.tiny_folder("sana")), export=["a1111"]))
    assert "known to load in a1111" in text
    assert "remedy" in text


def test_a_setting_that_contradicts_the_base_is_refused(data, tmp_path, no_models):
    """The prediction type is read from the base model and has no key; keys of the other objective are
    refused."""
    text = refusal(parsed(data, tmp_path / "run", "tiny-unet", objective={"shift": 3.0}))
    assert "objective.shift is for flow matching, but the base is a ddpm model" in text
    assert not (tmp_path / "run").exists()
    start(parsed(data, tmp_path / "flow", "tiny-dit", objective={"shift": 3.0}))
    with pytest.raises(ConfigError, match=r"objective\.prediction_type: unknown key"):
        parsed(data, tmp_path / "run", objective={"prediction_type": "v_prediction"})


CHOICES = {
    "optimizer.name": "adamw",
    "validate.fraction": 0.25,
    "optimizer.schedule": "cosine",
    "optimizer.betas": [0.8, 0.99],
    "optimizer.cycles": 3,
    "optimizer.power": 3.0,
    "optimizer.min_lr_ratio": 0.1,
    "caption_use.keep_first": 1,
    "caption_use.keep_marker": "|||",
    "caption_use.tag_separator": ";",
    "caption_use.group_separator": ";;;",
    "caption_use.tag_captions": "all",
    "caption_use.versions": 3,
    "caption_use.weights": [7, 3],
    "objective.timesteps": "uniform",
    "objective.shift": 2.0,
    "objective.logit_mean": 0.5,
    "objective.logit_std": 0.5,
    "objective.mode_scale": 1.0,
    "objective.weighting": "debiased",
    "objective.min_snr_gamma": 3.0,
    "objective.huber": {"c": 0.2},
    "objective.masked_loss": {"output_preservation": 0.5},
    "objective.output_preservation": 0.5,
    "adapter.targets": ["to_q"],
    "adapter.blocks": ["mid_block"],
    "adapter.conv_rank": 4,
    "adapter.factor": 4,
    "adapter.init": "gaussian",
    "adapter.text_encoder_lr": 1e-3,
    "textual_inversion": {"token": "blorp", "initializer_token": "dog"},
    "slider": {"target_prompt": "a ring", "positive_prompt": "a big ring", "negative_prompt": "a small ring"},
    "train.precision": "fp32",
    "train.compile": True,
    "train.kernels": "measure",
    "train.extended_at": [1],
    "train.ema_decay": 0.9,
    "memory.quantize": "nf4",
    "trigger": "sks",
    "class_noun": "dog",
}
COMPANIONS: dict[str, dict[str, Any]] = {  # keys that another key needs
    "train.steps": {"optimizer": {"schedule": "cosine"}},
    "optimizer.cycles": {"optimizer": {"schedule": "cosine_restarts"}},
    "optimizer.power": {"optimizer": {"schedule": "polynomial"}},
    "optimizer.min_lr_ratio": {"optimizer": {"schedule": "cosine"}},
    "caption_use.keep_first": {"caption_use": {"shuffle_tags": True}},
    "caption_use.versions": {"caption_use": {"shuffle_tags": True}},
    "memory.quantize": {"memory": {}},
    "objective.mode_scale": {"objective": {"timesteps": "mode"}},
    "objective.min_snr_gamma": {"objective": {"weighting": "min_snr"}},
    "objective.prior_loss_weight": {"class_images": "class"},
    "objective.output_preservation": {"trigger": "sks", "class_noun": "dog"},
    "adapter.factor": {"adapter": {"type": "lokr"}},
    "adapter.text_encoder_lr": {"adapter": {"text_encoder": True}},
    "adapter.denoiser": {"adapter": {"text_encoder": True}},
}
ONE_VALUE = ("adapter.type", "adapter.text_encoder")


def training_keys() -> list[str]:
    """Return every key of a recipe that decides the bytes of the adapter."""
    return sorted(
        recipe.training_settings(recipe.parse_recipe({"base": "tiny-dit", "dataset": "d", "out": "o"}))
    )


@pytest.mark.parametrize("key", [key for key in training_keys() if key not in ONE_VALUE])
def test_a_run_refuses_to_resume_with_a_setting_that_would_change_its_bytes(key, data, tmp_path):
    run, inputs = RunFolder(tmp_path / "run"), {"data": "d", "base": "b", "num_processes": 1}
    plain = parsed(data, tmp_path / "run", train={"precision": "bf16"}, **COMPANIONS.get(key, {}))
    run_changes.start_or_resume(run, plain, inputs)
    run.update_record(checkpoint_step=1)
    tree = plain.dump()
    *above, last = key.split(".")
    node = tree
    for name in above:
        node = node[name]
    old = node[last]
    if key in CHOICES:
        node[last] = CHOICES[key]
    elif isinstance(old, bool):
        node[last] = not old
    else:
        assert isinstance(old, int | float), f"{key}: give another value in CHOICES"
        node[last] = old + 16 if isinstance(old, int) else old / 2 + 0.01
    with pytest.raises(ConfigError, match=r"started with something else|cannot continue") as caught:
        run_changes.start_or_resume(run, recipe.parse_recipe(tree), inputs)
    assert f"{key}: " in str(caught.value) or f"{key}." in str(caught.value)  # a section, by its keys
    assert (
        recipe.load_recipe(run.path / "recipe.yaml").dump()[key.split(".")[0]]
        == plain.dump()[key.split(".")[0]]
    )


def test_settings_that_may_change_do_not_change_a_byte(data, tmp_path):
    """Other paths and file names, samples and validation: the adapter is the same."""
    first = runs.train(
        runs.make_recipe(tmp_path / "f.yaml", "tiny-dit", data, tmp_path / "first"), "train.steps=1"
    )
    common: dict[str, Any] = {"train": {"steps": 3, "batch_size": 2, "precision": "fp32"}}
    common["validate"] = {"fraction": 0.34}
    common["class_images"] = str(data)
    file = runs.make_recipe(
        tmp_path / "a.yaml", "tiny-dit", data, tmp_path / "a", **common, init_from=str(first)
    )
    plain = runs.train(file)

    prompts = runs.make_prompts(tmp_path / "p.jsonl")
    other = {
        "base": str(
            shutil.copytree(base_model.EMBEDDED_FOLDER / "tiny-dit", tmp_path / "elsewhere" / "base")
        ),
        "dataset": str(shutil.copytree(data, tmp_path / "elsewhere" / "photos")),
        "class_images": str(shutil.copytree(data, tmp_path / "elsewhere" / "class")),
        "out": str(tmp_path / "b"),
        "init_from": str(storage.copy_file(first / "adapter.safetensors", tmp_path / "mine.safetensors")),
        "samples": {"prompts": str(prompts), "every": 1, "num_inference_steps": 1},
        "tracker": "wandb",
        "export": ["diffusers"],
        "train": common["train"] | {"save_every": 1, "keep_optimizer_states": 1},
        "validate": common["validate"] | {"every": 1},
        "memory": {"keep_text_encoders": True},
    }
    assert {key.split(".")[0] for key in recipe.NON_TRAINING_KEYS} == set(other)
    moved = runs.train(storage.write_json(tmp_path / "b.yaml", storage.read_json(file) | other))
    assert (moved / "adapter.safetensors").read_bytes() == (plain / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "scheduler"])
def test_another_base_is_refused_with_both_hashes(part, data, tmp_path, no_models):
    base = Path(shutil.copytree(base_model.EMBEDDED_FOLDER / "tiny-dit", tmp_path / "base"))
    chosen = parsed(data, tmp_path / "run", base)
    start(chosen)
    start(chosen)
    before = base_model.base_hash(base)
    if part == "scheduler":
        file = base / part / "scheduler_config.json"
        file.write_text(file.read_text() + "\n")
    else:
        file = next((base / part).glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    base_model.component_hashes.cache_clear()  # it is computed once for each process
    text = refusal(chosen)
    assert f"base: {before} -> {base_model.base_hash(base)}" in text
    assert "choose another `out`" in text


HOLDER = """
import sys, time
from pathlib import Path
from lorakit.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_the_lock_of_a_dead_one_is_taken_over(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_WAIT", 0.5)
    run = tmp_path / "run"
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, run)
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another process is working on this run"):
            runs.train(file, "train.steps=1")
    finally:
        first.kill()
        first.communicate()
    assert (run / storage.LOCK).exists()  # a stale file, which locks nothing
    assert (runs.train(file, "train.steps=1") / "adapter.safetensors").exists()
