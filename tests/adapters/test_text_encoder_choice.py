"""Text encoders are adapted all, one of two, or without the denoiser; each program reads what was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.adapters import formats
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.evaluation.validation_loss import RunValidation
from lorakit.sampling.pipeline import SamplingPipeline
from tests import runs, tiny

CAPTION = "a sks picture of a ring"
CHOICES = {
    "first": {"text_encoder": ["text_encoder"]},
    "second": {"text_encoder": ["text_encoder_2"]},
    "alone": {"text_encoder": True, "denoiser": False},
    "first-alone": {"text_encoder": ["text_encoder"], "denoiser": False},
    "second-alone": {"text_encoder": ["text_encoder_2"], "denoiser": False},
}
KEYS = [("first", "sdxl"), ("second", "sdxl"), ("alone", "sdxl"), ("alone", "sd15"), ("first-alone", "sdxl")]
KEYS += [("second-alone", "sdxl"), ("first-alone", "sd15")]
ENCODERS = {"sd15": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 2)


def make(base: str, data: Path, out: Path, adapter: dict, **changes) -> Path:
    targets = {} if adapter.get("denoiser") is False else {"targets": ["attn2.to_v"]}
    tree = {
        "adapter": {"rank": 4, "alpha": 8} | targets | adapter,
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "train": {"steps": 3, "batch_size": 1, "save_every": 1, "precision": "fp32"},
        "export": ["comfyui", "diffusers"],
    }
    return runs.make_recipe(
        out.parent / f"{out.name}.json", tiny.tiny_folder(base), data, out, **(tree | changes)
    )


def trained_components(case: str, base: str) -> set[str]:
    chosen = CHOICES[case]["text_encoder"]
    encoders = set(ENCODERS[base]) if chosen is True else set(chosen)
    return encoders | (set() if CHOICES[case].get("denoiser") is False else {"unet"})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Runs by (case, base)."""
    folders = {}
    for case, base in KEYS:
        out = tmp_path_factory.mktemp("runs") / "run"
        folders[case, base] = runs.train(make(base, data, out, CHOICES[case]))
    return folders


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_only_what_was_chosen_is_trained(key, finished):
    tensors = storage.read_safetensors(finished[key] / "adapter.safetensors")
    assert {name.split(".")[0] for name in tensors} == trained_components(*key)
    assert all(value.any() for value in tensors.values())
    metadata = adapters.read_adapter_metadata(finished[key] / "adapter.safetensors")
    assert (metadata["type"], metadata["rank"], metadata["alpha"]) == ("lora", 4, 8.0)


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_every_export_holds_the_components_that_were_trained(key, finished, tmp_path):
    _, base = key
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
    if base == "sdxl":
        prefixes["text_encoder"] = "lora_te1_"
    expected = {prefixes[component] for component in trained_components(*key)}
    for consumer in formats.CONSUMERS:
        exported = formats.export_adapter(
            finished[key] / "adapter.safetensors", consumer, tmp_path / consumer, base=tiny.tiny_folder(base)
        )
        names = [name for file in exported for name in storage.read_safetensors(file.path)]
        if all(name.startswith("lora_") for name in names):
            assert {
                prefix for prefix in prefixes.values() for name in names if name.startswith(prefix)
            } == expected
        else:
            assert {name.split(".")[0] for name in names} == trained_components(*key)
        assert main.main(["inspect", str(exported[0].path)]) == 0


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_diffusers_encodes_text_with_an_export_as_the_run_does(key, finished, tmp_path):
    _, base = key
    sampler = SamplingPipeline(str(tiny.tiny_folder(base)), finished[key] / "adapter.safetensors")
    pipe = tiny.build(base)
    plain = sampler.family.encode_text(pipe, [CAPTION])[0]
    source = finished[key] / "adapter.safetensors"
    (exported,) = formats.export_adapter(source, "diffusers", tmp_path, dtype="fp32")
    pipe.load_lora_weights(str(exported.path.parent), weight_name=exported.path.name)
    theirs = sampler.family.encode_text(pipe, [CAPTION])[0]
    ours = sampler.family.encode_text(sampler.pipe, [CAPTION])[0]
    assert any((theirs[name] - plain[name]).abs().max() > 1e-3 for name in theirs)
    for name in theirs:
        assert torch.allclose(theirs[name], ours[name], atol=1e-5), name


@pytest.mark.parametrize(
    "key", [("alone", "sd15"), ("alone", "sdxl"), ("second-alone", "sdxl")], ids="-".join
)
def test_an_adapter_of_text_encoders_alone_is_sampled_converted_merged_and_measured(
    key, finished, tmp_path, capsys
):
    _, base = key
    run, folder = finished[key], str(tiny.tiny_folder(base))
    file, prompts = run / "adapter.safetensors", runs.make_prompts(tmp_path / "p.jsonl")
    sample = ["sample", folder, "--prompts", str(prompts), "--num-inference-steps", "1", "--size", "64x64"]
    assert main.main([*sample, "--quiet", "--out", str(tmp_path / "plain")]) == 0
    assert main.main([*sample, "--quiet", "--out", str(tmp_path / "own"), "--adapter", str(file)]) == 0
    names = [tmp_path / name / "a-0.png" for name in ("plain", "own")]
    assert names[0].read_bytes() != names[1].read_bytes()
    converted = tmp_path / "kohya.safetensors"
    assert main.main(["convert", str(file), str(converted), "--to", "kohya"]) == 0
    assert all(name.startswith("lora_te") for name in storage.read_safetensors(converted))
    assert main.main(["merge", folder, str(file), "--out", str(tmp_path / "merged")]) == 0
    sampler = SamplingPipeline(folder, file)
    before = sampler.family.encode_text(sampler.pipe, [CAPTION])[0]
    sampler.load_adapter(run / "checkpoints/step-00000001/adapter.safetensors")
    after = sampler.family.encode_text(sampler.pipe, [CAPTION])[0]
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_validation_loss_of_text_encoders_alone_is_measured(data, tmp_path):
    from lorakit.config.recipe import load_recipe

    file = make("sd15", data, tmp_path / "run", CHOICES["alone"], validate={"fraction": 0.5, "every": 3})
    run = runs.train(file)
    losses = [
        row["validation_loss"]
        for row in storage.read_jsonl(run / "metrics.jsonl")
        if "validation_loss" in row
    ]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    sampler = SamplingPipeline(str(tiny.tiny_folder("sd15")), run / "adapter.safetensors")
    measured = RunValidation(load_recipe(run / "recipe.yaml"), sampler).image_losses()["validation"]
    assert sum(measured) / len(measured) == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("case", ["second", "alone", "second-alone"])
def test_a_killed_run_of_chosen_text_encoders_ends_in_the_same_bytes(case, data, finished, tmp_path):
    file = make("sdxl", data, tmp_path / "run", CHOICES[case])
    with runs.killed_at(2):
        runs.train(file)
    run = runs.train(file)
    names = [folder / "adapter.safetensors" for folder in (run, finished[case, "sdxl"])]
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize(
    ("base", "adapter", "words"),
    [
        ("sd15", {"text_encoder": ["text_encoder_2"]}, ("'text_encoder_2'", "choose from text_encoder;")),
        ("sdxl", {"text_encoder": ["text_encodr_2"]}, ("did you mean 'text_encoder_2'?",)),
        ("sdxl", {"text_encoder": ["unet"]}, ("'unet'", "text_encoder, text_encoder_2")),
        ("sd3-no-t5", {"text_encoder": ["text_encoder"]}, ("cannot be trained",)),
        ("wan", {"text_encoder": True, "denoiser": False}, ("cannot be trained",)),
        ("sd15", {"denoiser": False}, ("leaves nothing to adapt",)),
        ("sd15", {"denoiser": False, "text_encoder": True, "blocks": ["mid_block"]}, ("blocks chooses",)),
        ("sd15", {"denoiser": False, "text_encoder": True, "targets": ["to_q"]}, ("targets chooses",)),
        ("sd15", {"denoiser": False, "text_encoder": True, "conv_rank": 4}, ("conv_rank chooses",)),
        ("sd15", {"text_encoder": []}, ("at least 1 entry",)),
        ("sd15", {"text_encoder": ["text_encoder", "text_encoder"]}, ("named twice",)),
    ],
)
def test_a_choice_that_cannot_be_trained_is_refused_with_what_can(base, adapter, words, data, tmp_path):
    file = runs.make_recipe(
        tmp_path / "r.json", tiny.tiny_folder(base), data, tmp_path / "out", adapter=adapter
    )
    with pytest.raises(ConfigError) as caught:
        runs.train(file)
    for text in words:
        assert text in str(caught.value)
    assert not (tmp_path / "out/adapter.safetensors").exists()


@pytest.mark.parametrize("missing", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_that_the_base_lacks_is_refused(missing, data, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny.tiny_folder("sdxl"), folder)
    index = storage.read_json(folder / "model_index.json")
    storage.write_json(folder / "model_index.json", index | {missing: [None, None]})
    shutil.rmtree(folder / missing)
    (other,) = {"text_encoder", "text_encoder_2"} - {missing}
    file = runs.make_recipe(
        tmp_path / "r.json", folder, data, tmp_path / "out", adapter={"text_encoder": [missing]}
    )
    with pytest.raises(ConfigError, match=f"choose from {other};"):
        runs.train(file)


def test_an_empty_adapter_file_is_refused(finished, tmp_path):
    file = finished["alone", "sd15"] / "adapter.safetensors"
    metadata = storage.read_safetensors_metadata(file)
    empty = storage.write_safetensors(tmp_path / "empty.safetensors", {}, metadata)
    with pytest.raises(DataError, match="no tensors"):
        SamplingPipeline(str(tiny.tiny_folder("sd15")), empty)
