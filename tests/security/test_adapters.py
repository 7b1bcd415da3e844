"""An adapter that does not fit, has false metadata or contains NaN is never loaded into a model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.adapters import formats
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import DataError, LorakitError, NumericError
from tests import runs, tiny
from tests.adapters.formats.runs import family_of, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    train("sd3", path)
    return path


def rewritten(trained: Path, folder: Path, change=lambda tensors: tensors, **entries: object) -> Path:
    """The adapter with other tensors or other metadata."""
    metadata = adapters.read_adapter_metadata(trained) | entries
    tensors = change(storage.read_safetensors(trained))
    return storage.write_safetensors(folder / "other.safetensors", tensors, adapters.pack_metadata(metadata))


def load_into_tiny_model(path: Path, name: str = "sd3") -> torch.nn.Module:
    family, pipe = family_of(name), tiny.build(name)
    adapters.load_adapter({family.components.denoiser: family.denoiser(pipe)}, path)
    return family.denoiser(pipe)


def test_another_width_lists_the_first_five_keys(trained, tmp_path):
    def widen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        wide = {key: torch.zeros(len(t), t.shape[1] + 8) for key, t in tensors.items() if ".lora_A." in key}
        return tensors | wide

    path = rewritten(trained, tmp_path, widen)
    names = sorted(key for key in storage.read_safetensors(trained) if ".lora_A." in key)
    with pytest.raises(DataError, match="does not fit this base model") as caught:
        load_into_tiny_model(path)
    assert f"{len(names)} tensors differ, first {', '.join(names[:5])}" in str(caught.value)
    assert names[5] not in str(caught.value)
    assert "use the base model that it was trained on" in str(caught.value)


def test_another_family_is_refused(trained, tmp_path, capsys):
    with pytest.raises(LorakitError):
        load_into_tiny_model(trained, "sd15")
    prompts = runs.make_prompts(tmp_path / "p.jsonl")
    where = ["--prompts", str(prompts), "--out", str(tmp_path / "out")]
    assert main.main(["sample", "tiny-dit", "--adapter", str(trained), *where]) == 2
    assert "does not fit this base model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_nan_is_refused(value, trained, tmp_path):
    def poison(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = sorted(tensors)[3]
        return tensors | {key: torch.full_like(tensors[key], value)}

    path = rewritten(trained, tmp_path, poison)
    with pytest.raises(NumericError, match="NaN or infinity"):
        load_into_tiny_model(path)
    with pytest.raises(NumericError, match="NaN or infinity"):
        formats.export_adapter(path, "all", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "entries",
    [
        {"rank": 10**9},  # would be allocated
        {"rank": 0},
        {"rank": "4"},
        {"rank": None},
        {"alpha": "10"},
        {"family": 5},
        {"family": None},
        {"base_hash": []},
    ],
)
def test_an_adapter_with_false_metadata_is_refused_at_once(entries, trained, tmp_path):
    path = rewritten(trained, tmp_path, **entries)
    began = time.process_time()
    with pytest.raises(DataError, match="damaged"):
        adapters.read_adapter_metadata(path)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["{", "[]", "5", json.dumps({"rank": 4}), "[" * 100_000, ""])
def test_invalid_adapter_metadata_is_refused(text, trained, tmp_path):
    path = tmp_path / "other.safetensors"
    storage.write_safetensors(path, storage.read_safetensors(trained), {"lorakit": text})
    with pytest.raises(DataError, match="damaged"):
        adapters.read_adapter_metadata(path)
