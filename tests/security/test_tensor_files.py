"""Hostile tensor files are refused by their header: fast, in little memory, with a reason."""

from __future__ import annotations

import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.adapters import formats
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.models import base_model
from tests.security.files import HOSTILE, WHOLE, archive, entry, tensor_file

READERS = {
    "tensors": storage.read_safetensors,
    "metadata": storage.read_safetensors_metadata,
    "adapter": adapters.read_adapter_metadata,
    "export": formats.read_adapter_file,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_fast_and_in_little_memory(name, reader, tmp_path):
    data, message = HOSTILE[name]
    file = tmp_path / "evil.safetensors"
    file.write_bytes(data)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(DataError, match=r"evil\.safetensors") as caught:
            READERS[reader](file)
        seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert seconds < 1
    assert peak < 40 << 20


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_in_a_base_is_refused_before_anything_loads(name, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_model.EMBEDDED_FOLDER / "tiny-dit", base)
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(HOSTILE[name][0])
    with pytest.raises(DataError) as caught:
        base_model.resolve_base(str(base))
    assert str(file) in str(caught.value)
    assert HOSTILE[name][1] in str(caught.value)


def test_a_file_within_the_limits_is_read(tmp_path):
    """The limits allow every dtype of torch, empty and scalar tensors, and 20,000 tensors."""
    file = tmp_path / "sound.safetensors"
    types = (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    types += (torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2)
    tensors = {str(t): torch.ones(3).to(t) for t in types} | {"scalar": torch.tensor(1.0)}
    tensors |= {"none": torch.zeros(0, 4)} | {
        f"n{i}": torch.zeros(1, dtype=torch.uint8) for i in range(20_000)
    }
    storage.write_safetensors(file, tensors, {"note": "x" * 100_000})
    assert storage.read_safetensors_metadata(file) == {"note": "x" * 100_000}
    back = storage.read_safetensors(file)
    assert {name: (t.dtype, t.shape) for name, t in back.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }


def test_a_zip_inside_a_tensor_is_only_numbers(tmp_path):
    data = archive()
    file = tmp_path / "numbers.safetensors"
    file.write_bytes(tensor_file({"a": entry([len(data)], 0, len(data), "U8")}, data))
    assert bytes(storage.read_safetensors(file)["a"].tolist()) == data


def test_a_missing_file_is_not_a_data_error(tmp_path):
    """Only for a missing file may a cache compute its entry without a warning."""
    with pytest.raises(FileNotFoundError):
        storage.read_safetensors(Path(tmp_path / "missing.safetensors"))
    assert tensor_file({"a": WHOLE})
