"""Exports that are refused: each with a clear error, and without a file."""

from __future__ import annotations

import shutil
import time

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.formats import consumers, layouts
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, LorakitError, NumericError
from tests import tiny
from tests.adapters.formats.runs import ALPHA, RANK, export_exactly, train, train_method


def refused(error, words, path, consumer, out, **options):
    with pytest.raises(error, match=words):
        export_exactly(path, consumer, out, **options)
    assert not list(out.rglob("*.safetensors")) if out.is_dir() else not out.exists()


def test_an_untrained_adapter_is_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    train("sd3", path, std=0.0)
    refused(NumericError, "the adapter has no effect", path, "all", tmp_path / "out")
    exported, *_ = export_exactly(path, "all", tmp_path / "out", allow_untrained=True)
    assert exported.max_relative_error == 0


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_nan_and_infinity_are_refused_by_the_tensor_name(value, dtype, trained, tmp_path):
    tensors = storage.read_safetensors(trained)
    key = "transformer.transformer_blocks.1.attn.to_k.lora_B.weight"
    broken = tensors[key].clone()
    broken[-1, -1] = value
    metadata = storage.read_safetensors_metadata(trained)
    storage.write_safetensors(trained, tensors | {key: broken.to(dtype)}, metadata)
    for allow_untrained in (False, True):
        refused(
            NumericError,
            r"NaN or infinity(.|\n)*to_k",
            trained,
            "all",
            tmp_path / "out",
            allow_untrained=allow_untrained,
        )
    with pytest.raises(NumericError, match=rf"NaN or infinity(.|\n)*{key}\n"):
        formats.read_adapter_file(trained)
    with pytest.raises(NumericError, match=key):
        formats.parse_adapter(trained.read_bytes(), "its bytes")
    assert formats.read_adapter_file(trained, allow_nonfinite=True).nonfinite_tensors == (key,)


def test_an_alpha_that_is_nan_is_refused(tmp_path):
    path, stem = tmp_path / "x.safetensors", "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(8, 2)}
    storage.write_safetensors(path, tensors | {f"{stem}.alpha": torch.tensor(float("nan"))}, {})
    with pytest.raises(NumericError, match=r"proj_in\.alpha"):
        formats.read_adapter_file(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("t{}", "100000 tensors, at most 30000"), ("transformer.blocks.{}.lora_A.weight", "MiB, at most 8")],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_file_of_100_000_tensors_is_refused_fast(name, words, hidden, tmp_path):
    """Short names are refused by the number of tensors, however JSON escapes them; long ones by bytes."""
    entry = '"%s":{"dtype":"U8","shape":[],"data_offsets":[0,0]}'
    if hidden:
        entry = entry.replace("offsets", "\\u006fffsets")
    text = "{" + ",".join(entry % name.format(number) for number in range(100_000)) + "}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    began = time.process_time()
    with pytest.raises(DataError, match=words):
        formats.read_adapter_file(path)
    assert hidden or time.process_time() - began < 1


def test_an_upsampler_that_a1111_does_not_find_is_refused(tmp_path):
    """A1111 has the name of Stable Diffusion 1.5 for it, and looks for the same name in XL."""
    path, targets = tmp_path / "adapter.safetensors", ["to_q", "upsamplers.0.conv"]
    train("sdxl", path, targets=targets)
    words = r"a1111 would ignore 1 modules, first up_blocks\.0\.upsamplers\.0\.conv(.|\n)*Forge, unlike A1111"
    refused(ConfigError, words, path, "a1111", tmp_path / "o")
    (exported,) = export_exactly(path, "all", tmp_path / "o")
    assert exported.consumers == ("comfyui", "diffusers")
    train("sd15", path, targets=targets)
    (exported,) = export_exactly(path, "all", tmp_path / "p")
    assert exported.consumers == consumers.CONSUMERS


@pytest.mark.parametrize(("name", "becomes_lora"), [("sd15", True), ("flux1-dev", False)])
def test_a_dora_becomes_a_lora_for_a1111_where_it_would_compute_it_wrongly(name, becomes_lora, tmp_path):
    """Families that only Forge reads keep their DoRA."""
    path = tmp_path / "adapter.safetensors"
    train_method(name, path, "dora")
    exported = export_exactly(path, "all", tmp_path / "o", base=tiny.tiny_folder(name))
    found = {consumer: file for file in exported for consumer in file.consumers}
    for consumer, magnitudes in {"comfyui": True, "a1111": not becomes_lora}.items():
        keys = storage.read_safetensors(found[consumer].path)
        assert any(key.endswith(".dora_scale") for key in keys) == magnitudes
    assert (found["a1111"] is found["comfyui"]) != becomes_lora
    if becomes_lora:
        assert found["a1111"].consumers == ("a1111",)
        rank = {
            formats.read_adapter_file(found["a1111"].path).deltas[m].rank
            for m in formats.read_adapter_file(path).deltas
        }
        assert max(rank) > 4  # the rank of the DoRA


def test_a_consumer_without_a_checked_layout_is_refused(trained, tmp_path):
    path = tmp_path / "sana.safetensors"
    train("sana", path)
    words = r"no layout of sana adapters is known to load in a1111(.|\n)*consumers of sana: diffusers"
    refused(ConfigError, words, path, "a1111", tmp_path / "out")
    refused(ConfigError, "unknown consumer 'fooocus'", trained, "fooocus", tmp_path / "out")


def test_another_base_model_is_refused(trained, tmp_path):
    refused(
        ConfigError,
        "a sd3 adapter does not fit a sd15",
        trained,
        "all",
        tmp_path / "o",
        base=tiny.tiny_folder("sd15"),
    )
    path = tmp_path / "dual.safetensors"
    train("sd35", path)
    refused(
        ConfigError,
        "4 modules do not fit the base model, first transformer_blocks.0.attn2",
        path,
        "all",
        tmp_path / "o",
        base=tiny.tiny_folder("sd3"),
    )


@pytest.mark.parametrize("defect", ["scale", "module", "name"])
def test_a_wrong_writer_is_detected(defect, trained, tmp_path, monkeypatch):
    """Each of these files would load without an error and give other images."""

    def write(deltas, family):
        tensors = layouts.write_diffusers(deltas, family)
        if defect == "scale":
            return {key: value * (RANK / ALPHA if "lora_B" in key else 1) for key, value in tensors.items()}
        if defect == "module":
            return {key: value for key, value in tensors.items() if "to_k" not in key}
        return {key.replace("to_add_out", "to_out_add"): value for key, value in tensors.items()}

    monkeypatch.setitem(layouts.WRITERS, "diffusers", write)
    refused(
        LorakitError,
        "would not load as trained(.|\n)*transformer_blocks",
        trained,
        "comfyui",
        tmp_path / "out",
    )


def test_neither_the_adapter_nor_a_foreign_file_is_replaced(trained, tmp_path):
    before = trained.read_bytes()
    with pytest.raises(ConfigError, match="must not replace the adapter"):
        export_exactly(trained, "comfyui", trained)
    foreign = tmp_path / "foreign.safetensors"
    storage.write_safetensors(foreign, {"a": torch.zeros(1)}, {"format": "pt"})
    with pytest.raises(ConfigError, match="lorakit did not write this file, so it is not replaced"):
        export_exactly(trained, "comfyui", foreign)
    assert trained.read_bytes() == before
    first = export_exactly(trained, "all", tmp_path / "out")
    second = export_exactly(trained, "all", tmp_path / "out")
    assert first == second


def test_files_that_are_not_adapters_are_refused(trained, tmp_path):
    path = tmp_path / "x.safetensors"
    storage.write_safetensors(path, {"conv_in.weight": torch.zeros(1)}, {"format": "pt"})
    with pytest.raises(DataError, match=r"first keys are conv_in.weight"):
        formats.read_adapter_file(path)
    tensors = storage.read_safetensors(trained)
    storage.write_safetensors(path, tensors, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"does not name its model family: it could be .*sd3"):
        export_exactly(path, "all", tmp_path / "out")
    assert export_exactly(path, "diffusers", tmp_path / "named", family="sd3")
    half = {key: value for key, value in tensors.items() if "0.attn.to_q.lora_B" not in key}
    storage.write_safetensors(path, half, storage.read_safetensors_metadata(trained))
    with pytest.raises(DataError, match="one of the two LoRA factors is missing"):
        formats.read_adapter_file(path)
    storage.write_safetensors(path, tensors | {"transformer.x.bias": torch.zeros(1)}, {"format": "pt"})
    with pytest.raises(DataError, match=r"unknown key: transformer\.x\.bias"):
        formats.read_adapter_file(path)
    for text in ('{"rank": 0}', "[]", "{", '{"rank": 4, "alpha": "x", "family": "sd3"}'):
        storage.write_safetensors(path, tensors, {"lorakit": text})
        with pytest.raises(DataError, match="is damaged"):
            formats.read_adapter_file(path)
    shutil.copy(trained, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError):
        formats.read_adapter_file(path)
