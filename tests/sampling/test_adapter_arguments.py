"""Adapters of any origin on fine-tunes of their base model, and several at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import lorakit
from lorakit import adapters
from lorakit.adapters import formats
from lorakit.adapters.sources import AdapterSource, parse_adapter_source
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model
from lorakit.sampling.pipeline import SamplingPipeline
from tests import runs, tiny
from tests.adapters.formats.runs import train_method

FEW = ["to_q", "to_out.0"]
BASES = ["sd15", "sdxl", "sd3"]


def fine_tune(base: str, folder: Path, **scheduler: object) -> Path:
    """A copy of a tiny base model with other weights, and other scheduler settings."""
    copy = Path(shutil.copytree(tiny.tiny_folder(base), folder / "tuned"))
    (file,) = [*copy.glob("unet/*.safetensors"), *copy.glob("transformer/*.safetensors")]
    tensors = {name: tensor * 1.01 for name, tensor in storage.read_safetensors(file).items()}
    storage.write_safetensors(file, tensors, {"format": "pt"})
    if scheduler:
        config = copy / "scheduler/scheduler_config.json"
        storage.write_json(config, storage.read_json(config) | scheduler)
    return copy


def trained(base: str, path: Path, method: str = "lora", texts: tuple[str, ...] = ()) -> Path:
    """An adapter whose metadata has the hash of the tiny base model."""
    train_method(base, path, method, targets=FEW, texts=texts)
    own = adapters.read_adapter_metadata(path)
    own["base_hash"] = base_model.base_hash(tiny.tiny_folder(base))
    storage.write_safetensors(path, storage.read_safetensors(path), adapters.pack_metadata(own))
    return path


def merged_weights(pipeline: SamplingPipeline) -> dict[str, torch.Tensor]:
    """Each adapted weight with its change, by `<component>.<module>`."""
    weights = {}
    for component, network in pipeline.networks.items():
        for name, layer in network.named_modules():
            if hasattr(layer, "get_base_layer"):
                layer.merge()
                weights[f"{component}.{name}"] = layer.get_base_layer().weight.detach().clone()
                layer.unmerge()
    return weights


@pytest.mark.parametrize("base", BASES)
def test_an_adapter_is_used_on_a_fine_tune_with_one_note(base, tmp_path, capsys):
    file, copy = trained(base, tmp_path / "a.safetensors"), fine_tune(base, tmp_path)
    pipeline = SamplingPipeline(str(copy), file)
    err = capsys.readouterr().err
    assert err.count("trained on another base model of this family") == 1
    assert adapters.count_trainable(*pipeline.networks.values()).num_modules == len(
        formats.read_adapter_file(file).deltas
    )
    SamplingPipeline(str(tiny.tiny_folder(base)), file)
    assert "another base model" not in capsys.readouterr().err
    pipe = lorakit.load_pipeline(copy, adapter=file, strength=0.5)
    assert pipe.lorakit_family.name == pipeline.family.name


@pytest.mark.parametrize("base", BASES)
def test_merging_into_a_fine_tune_adds_the_delta_weights_with_one_note(base, tmp_path, capsys):
    file, copy = trained(base, tmp_path / "a.safetensors"), fine_tune(base, tmp_path)
    assert main.main(["merge", str(copy), f"{file}:0.5", "--out", str(tmp_path / "merged")]) == 0
    assert capsys.readouterr().err.count("trained on another base model of this family") == 1
    before, after = formats.BaseWeights(copy), formats.BaseWeights(tmp_path / "merged")
    for module, delta in formats.read_adapter_file(file).deltas.items():
        change = after.read_weight(module) - before.read_weight(module)
        assert torch.allclose(change, 0.5 * delta.dense(), atol=1e-5)


@pytest.mark.parametrize(
    ("trained_on", "settings"),
    [("epsilon", {"prediction_type": "v_prediction"}), ("v_prediction", {"prediction_type": "epsilon"})],
)
@pytest.mark.parametrize("named_by", ["lorakit", "modelspec"])
def test_another_prediction_type_is_a_warning(trained_on, settings, named_by, tmp_path, capsys):
    file, copy = trained("sd15", tmp_path / "a.safetensors"), fine_tune("sd15", tmp_path, **settings)
    tensors, own = storage.read_safetensors(file), adapters.read_adapter_metadata(file)
    if named_by == "lorakit":
        own |= {} if trained_on == "epsilon" else {"prediction_type": trained_on}
        storage.write_safetensors(file, tensors, adapters.pack_metadata(own))
    else:
        short = {"epsilon": "epsilon", "v_prediction": "v"}[trained_on]
        metadata = {"modelspec.prediction_type": short}
        storage.write_safetensors(file, tensors, {"format": "pt"} | metadata)
    SamplingPipeline(str(copy), file)
    current = settings["prediction_type"]
    assert f"predicts {trained_on}, this one predicts {current}" in capsys.readouterr().err


@pytest.mark.parametrize("base", BASES)
def test_other_widths_are_refused_with_the_first_five_modules(base, tmp_path):
    file = trained(base, tmp_path / "a.safetensors")
    tensors = storage.read_safetensors(file)
    wide = {key: torch.cat([t, t], 1) if ".lora_A." in key else t for key, t in tensors.items()}
    storage.write_safetensors(file, wide, storage.read_safetensors_metadata(file))
    with pytest.raises(ConfigError, match="does not fit this base model") as caught:
        SamplingPipeline(str(tiny.tiny_folder(base)), file)
    assert str(caught.value).count("in the base model ") == min(5, len(tensors) // 2)
    merge = ["merge", str(tiny.tiny_folder(base)), str(file), "--out", str(tmp_path / "merged")]
    assert main.main(merge) == 2
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        ("sd15", ["lora", "lora"]),
        ("sd15", ["lora", "dora"]),
        ("sdxl", ["loha", "lora", "lokr"]),
        ("sd3", ["oft", "lora"]),
    ],
)
def test_several_adapters_add_up(base, methods, tmp_path):
    arguments, plain = [], SamplingPipeline(str(tiny.tiny_folder(base)))
    for number, method in enumerate(methods):
        texts = ("text_encoder",) if base == "sdxl" and number == 0 else ()
        file = trained(base, tmp_path / f"{number}.safetensors", method, texts)
        arguments.append(AdapterSource(file, 0.8 - 0.5 * number))
    pipeline = SamplingPipeline(str(tiny.tiny_folder(base)), arguments)
    weights = formats.BaseWeights(tiny.tiny_folder(base))
    changed = merged_weights(pipeline)
    expected: dict[str, torch.Tensor] = {}
    for argument in arguments:
        for module, delta in formats.read_adapter_file(argument.path).deltas.items():
            base_weight = weights.read_weight(module).float()
            change = argument.strength * delta.dense(base_weight).reshape(base_weight.shape)
            expected[module] = expected.get(module, base_weight) + change
    names = {name.replace("text_model.", ""): name for name in expected}
    assert {name.replace("text_model.", "") for name in changed} == set(names)
    for name, weight in changed.items():
        assert torch.allclose(weight, expected[names[name.replace("text_model.", "")]], atol=1e-4), name
    with adapters.adapters_disabled(*pipeline.networks.values()):
        assert not any(p.requires_grad for p in plain.denoiser.parameters())


def test_the_command_samples_with_several_adapters(tmp_path, capsys):
    files = [
        trained("sd15", tmp_path / f"{n}.safetensors", method) for n, method in enumerate(["lora", "loha"])
    ]
    prompts = runs.make_prompts(tmp_path / "p.jsonl")
    command = ["sample", str(tiny.tiny_folder("sd15")), "--prompts", str(prompts), "--quiet"]
    command += ["--size", "64x64", "--guidance-scale", "1", "--num-inference-steps", "1"]
    command += ["--provenance", "none"]  # the same pixels are the same file
    images = {}
    for name, strengths in {"both": (0.8, 0.5), "first": (0.8, 0), "none": (0, 0)}.items():
        texts = [f"--adapter={file}:{strength}" for file, strength in zip(files, strengths, strict=True)]
        assert main.main([*command, *texts, "--out", str(tmp_path / name)]) == 0
        images[name] = (tmp_path / name / "a-0.png").read_bytes()
    assert main.main([*command, "--out", str(tmp_path / "base")]) == 0
    assert len(set(images.values())) == 3
    assert images["none"] == (tmp_path / "base/a-0.png").read_bytes()


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "native"])
def test_files_of_other_layouts_are_sampled_with(layout, tmp_path):
    own = trained("sd3", tmp_path / "a.safetensors")
    adapter = lorakit.Adapter.load(own)
    saved = adapter.save(tmp_path / "b.safetensors", format=layout).path
    bare = storage.write_safetensors(tmp_path / "c.safetensors", storage.read_safetensors(saved))
    expected = merged_weights(SamplingPipeline(str(tiny.tiny_folder("sd3")), own))
    for file in (saved, bare):
        found = merged_weights(SamplingPipeline(str(tiny.tiny_folder("sd3")), file))
        assert expected.keys() <= found.keys()
        assert all(torch.allclose(found[name], weight, atol=1e-5) for name, weight in expected.items())


@pytest.mark.parametrize("strength", ["nan", "inf", "strong"])
def test_a_strength_that_is_no_finite_number_is_refused(strength, tmp_path):
    file = trained("sd15", tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is not a strength"):
        parse_adapter_source(f"{file}:{strength}")


def test_strengths_and_adapters_of_a_pipeline_must_be_as_many(tmp_path):
    file = trained("sd15", tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="2 adapters and 1 strengths"):
        lorakit.load_pipeline(tiny.tiny_folder("sd15"), adapter=[file, file], strength=[0.5])
