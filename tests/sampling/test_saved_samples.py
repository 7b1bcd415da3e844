"""Files of samples: the record of what they were generated from, off by one switch, with the same pixels."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import checksums, storage
from lorakit.imaging import inspect_image
from lorakit.models import base_model
from tests import runs
from tests.sampling.test_diffusers_pipeline import write_adapter

STEPS = ["--num-inference-steps", "2", "--size", "64x64"]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter, and the samples with it by mode."""
    root = tmp_path_factory.mktemp("samples")
    adapter = write_adapter("tiny-dit", root)
    prompts = storage.write_jsonl(
        root / "p.jsonl", [{"id": "a", "prompt": "a red circle", "negative": "blue", "seeds": [3]}]
    )
    modes = {"text": [], "again": [], "none": ["--provenance", "none"]}
    if importlib.util.find_spec("c2pa"):
        modes["c2pa"] = ["--provenance", "c2pa"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(root / "config"))
        for name, options in modes.items():
            arguments = ["sample", "tiny-dit", "--adapter", f"{adapter}:0.5", "--prompts", str(prompts)]
            assert main.main([*arguments, "--out", str(root / name), "--quiet", *STEPS, *options]) == 0
    return root


def test_a_sample_says_what_it_was_generated_from(sampled):
    record = inspect_image.inspect_image(sampled / "text/a-3.png")["record"]
    adapter = next(sampled.glob("*.safetensors"))
    assert record == {
        "prompt": "a red circle",
        "negative": "blue",
        "seed": 3,
        "num_inference_steps": 2,
        "guidance_scale": record["guidance_scale"],
        "width": 64,
        "height": 64,
        "sampler": "Euler",
        "family": record["family"],
        "base": "tiny-dit",
        "base_hash": base_model.base_hash(base_model.resolve_base("tiny-dit")),
        "adapters": [{"sha256": checksums.sha256_file(adapter), "strength": 0.5}],
        "num_frames": 1,
        "version": record["version"],
        "digital_source_type": record["digital_source_type"],
    }
    assert str(sampled) not in json.dumps(record)


def test_the_record_is_off_by_one_switch_and_changes_no_pixel(sampled):
    names = [name for name in ("text", "none", "c2pa") if (sampled / name).is_dir()]
    images = [np.asarray(Image.open(sampled / name / "a-3.png")) for name in names]
    assert all(np.array_equal(images[0], image) for image in images)
    properties = inspect_image.inspect_image(sampled / "none/a-3.png")
    assert (properties["record"], properties["texts"], properties["says_ai_generated"]) == (None, {}, False)


def test_equal_runs_write_equal_files(sampled):
    first, second = (checksums.sha256_file(sampled / name / "a-3.png") for name in ("text", "again"))
    assert first == second


@pytest.mark.skipif(not importlib.util.find_spec("c2pa"), reason="needs the extra c2pa (in the dev group)")
def test_a_sample_is_signed_on_request(sampled):
    properties = inspect_image.inspect_image(sampled / "c2pa/a-3.png")
    assert properties["content_credentials"]["state"] == "valid"
    assert properties["content_credentials"]["digital_source_type"].endswith("trainedAlgorithmicMedia")
    assert properties["record"]["prompt"] == "a red circle"
    assert inspect_image.inspect_image(sampled / "text/a-3.png")["content_credentials"] is None


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("tiny-dit", "tiny-dit"),
        ("org/model", "org/model"),
        ("org/model@1234", "org/model@1234"),
        ("./model", None),
        ("/home/me/model", None),
        ("models/mine.safetensors", None),
        ("a/b/c", None),
    ],
)
def test_only_public_names_of_base_models_are_written(base, name):
    assert base_model.public_name(base) == name


def test_a_folder_that_looks_like_a_hub_id_is_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/model").mkdir(parents=True)
    assert base_model.public_name("org/model") is None


@pytest.mark.parametrize("mode", ["text", "none"])
def test_samples_of_a_training_name_the_run_and_the_step(mode, tmp_path):
    data, prompts = runs.make_dataset(tmp_path / "data", 2), runs.make_prompts(tmp_path / "p.jsonl")
    samples = {"prompts": str(prompts), "every": 1, "num_inference_steps": 1, "provenance": mode}
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", samples=samples,
        train={"steps": 1, "batch_size": 1, "precision": "fp32"},
    )  # fmt: skip
    run = runs.train(file)
    record = inspect_image.inspect_image(run / "samples/step-00000001/a-0.png")["record"]
    if mode == "none":
        assert record is None
        return
    metadata = json.loads(storage.read_safetensors_metadata(run / "adapter.safetensors")["lorakit"])
    assert record["adapters"] == [{"recipe_hash": metadata["recipe_hash"], "step": 1, "strength": 1.0}]
    assert record["base_hash"] == metadata["base_hash"]
    assert recipe.load_recipe(run / "recipe.yaml").samples.provenance == mode
