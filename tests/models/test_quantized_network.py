"""Denoisers loaded with quantized layers, one tensor at a time, and the store of quantized weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model, families, loading
from lorakit.models.memory import MemorySettings, quantize, quantized_store
from lorakit.models.memory.quantized_layers import LAYERS, QuantizedLinear
from tests import tiny
from tests.benchmarks import quantize_memory

CPU = torch.device("cpu")
NAMES = ["sd15", "sdxl", "sd35", "flux1-dev", "qwen-image", "wan-2.2", "kandinsky5"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(base_model.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "quantized"


def load(folder: Path, kind: str | None, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    base_model.component_hashes.cache_clear()
    family = families.detect_family(folder)
    components = {*family.denoiser_components(folder), "scheduler"}
    settings = MemorySettings(quantize=kind)
    pipe = loading.load_components(family, folder, components, dtype=dtype, device=CPU, settings=settings)
    return family.denoiser(pipe)


def equal_states(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    same = states[0].keys() == states[1].keys()
    return same and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("name", "kind"), [(name, list(LAYERS)[index % 3]) for index, name in enumerate(NAMES)]
)
def test_only_the_quantized_layers_differ_from_the_whole_network(name, kind):
    folder = Path(tiny.tiny_folder(name))
    whole, network = load(folder, None), load(folder, kind)
    exact = load(folder, None, torch.float32)
    quantize.quantize_linear_layers(exact, kind, CPU, torch.bfloat16)
    plain, loaded, expected = whole.state_dict(), network.state_dict(), exact.state_dict()
    layers = {name for name, module in network.named_modules() if isinstance(module, QuantizedLinear)}
    assert layers
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        source = expected if key.rpartition(".")[0] in layers else plain
        assert tensor.dtype == source[key].dtype
        assert torch.equal(tensor, source[key]), key
    assert whole.dtype == network.dtype
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_base_model_is_quantized_once_for_every_precision(cache, monkeypatch):
    folder = Path(tiny.tiny_folder("sd35"))
    first = load(folder, "int8")
    monkeypatch.setattr(LAYERS["int8"], "encode", None)  # it would fail
    assert equal_states(load(folder, "int8"), first)
    other = load(folder, "int8", torch.float32)
    name = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(other.get_parameter(name), first.get_parameter(name))
    assert len(list(cache.glob("*/weights.json"))) == 1


def test_another_quantization_or_base_model_has_an_entry_of_its_own(cache, tmp_path):
    folder = Path(shutil.copytree(tiny.tiny_folder("sd35"), tmp_path / "base"))
    load(folder, "int8")
    load(folder, "fp8")
    file = next((folder / "transformer").glob("*.safetensors"))
    tensors = storage.read_safetensors(file)
    name = "transformer_blocks.0.attn.to_q.weight"
    changed = {key: value.clone() for key, value in tensors.items()} | {name: tensors[name] * 2}
    storage.write_safetensors(file, changed, {"format": "pt"})
    assert not torch.equal(load(folder, "int8").get_buffer(name.replace("weight", "scale")), torch.zeros(1))
    assert len(list(cache.glob("*/weights.json"))) == 3


@pytest.mark.parametrize("damage", ["byte", "cut", "missing", "record"])
def test_damaged_entries_are_reported_and_computed_again(cache, damage, capsys):
    folder = Path(tiny.tiny_folder("sd35"))
    first = load(folder, "nf4")
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    (file,) = cache.glob(f"*/{quantized_store.WEIGHTS_FILE}")
    data = file.read_bytes()
    file.unlink()  # the network above is a map of it
    if damage == "byte":
        file.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    elif damage == "cut":
        file.write_bytes(data[:-100])
    elif damage == "record":
        file.write_bytes(data)
        file.with_name(quantized_store.RECORD_FILE).write_text("{")
    again = load(folder, "nf4").state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert "are damaged: they are computed again" in capsys.readouterr().err
    assert file.read_bytes() == data


def test_a_crash_while_quantizing_leaves_no_entry(cache, monkeypatch):
    folder = Path(tiny.tiny_folder("sd35"))

    def crash(name: str, path: Path) -> None:
        if name == "rename" and path.name == quantized_store.WEIGHTS_FILE:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "io_hook", crash)
    with pytest.raises(KeyboardInterrupt):
        load(folder, "int8")
    assert not list(cache.glob("*/weights.*"))
    monkeypatch.undo()


def test_without_space_on_disk_the_weights_are_quantized_into_memory(cache, monkeypatch, capsys):
    folder = Path(tiny.tiny_folder("sd35"))
    expected = load(folder, "int8")
    shutil.rmtree(cache)

    def full(name: str, path: Path) -> None:
        if cache in path.parents:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "io_hook", full)
    assert equal_states(load(folder, "int8"), expected)
    assert "cannot be kept on disk, and are computed at each start" in capsys.readouterr().err
    assert not list(cache.glob("*/weights.*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("pos_embed.proj.weight"), "1 tensors are missing from the weights"),
        (
            lambda tensors: tensors.update({"pos_embed.proj.bias": torch.zeros(3)}),
            "1 tensors do not have the shape of the network, first pos_embed.proj.bias",
        ),
    ],
)
def test_weights_that_do_not_fit_the_network_are_refused(tmp_path, change, said):
    folder = Path(shutil.copytree(tiny.tiny_folder("sd35"), tmp_path / "base"))
    file = next((folder / "transformer").glob("*.safetensors"))
    tensors = {key: value.clone() for key, value in storage.read_safetensors(file).items()}
    change(tensors)
    storage.write_safetensors(file, tensors, {"format": "pt"})
    with pytest.raises(ConfigError, match=said):
        load(folder, "int8")


@pytest.mark.parametrize("variant", ["shards", "fp16"])
def test_shards_and_variants_are_read_as_diffusers_reads_them(tmp_path, variant):
    folder = Path(shutil.copytree(tiny.tiny_folder("sd35"), tmp_path / "base"))
    expected = load(folder, "int8")
    path = folder / "transformer"
    (file,) = path.glob("*.safetensors")
    if variant == "fp16":
        file.rename(path / "diffusion_pytorch_model.fp16.safetensors")
    else:
        tensors = {key: value.clone() for key, value in storage.read_safetensors(file).items()}
        file.unlink()
        weight_map = {}
        for index in range(2):
            part = f"diffusion_pytorch_model-0000{index + 1}-of-00002.safetensors"
            names = sorted(tensors)[index::2]
            storage.write_safetensors(path / part, {name: tensors[name] for name in names}, {"format": "pt"})
            weight_map |= dict.fromkeys(names, part)
        index_file = path / "diffusion_pytorch_model.safetensors.index.json"
        index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert equal_states(load(folder, "int8"), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_loading_needs_little_more_memory_than_the_quantized_network(tmp_path):
    """The full size is a benchmark: `python -m tests.benchmarks.quantize_memory`."""
    quantize_memory.write_network(tmp_path / "base", 100 << 20)
    result = quantize_memory.measure(tmp_path / "base", "int8", tmp_path / "cache")
    assert result["quantized_bytes"] < 60 << 20
    assert result["peak_with_all_pages_bytes"] < result["quantized_bytes"] + (64 << 20)
