"""Tensors of safetensors files, read and written one at a time."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit.core import tensor_files
from lorakit.core.errors import DataError
from lorakit.core.tensor_files import TensorFiles, TensorLayout, write_in_parts

TENSORS = {
    "codes": torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4),
    "scale": torch.tensor([0.5, 1.5, 2.5]),
    "offset": torch.tensor(0.25),
    "half": torch.ones(5, dtype=torch.bfloat16),
}
LAYOUTS = {name: TensorLayout(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("order", [list(TENSORS), list(reversed(TENSORS))])
def test_tensors_in_any_order_make_one_file_that_the_library_reads(tmp_path, order):
    file = write_in_parts(tmp_path / "a.safetensors", LAYOUTS, ((n, TENSORS[n]) for n in order), {"b": "c"})
    read = load_file(file)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    same = write_in_parts(tmp_path / "b.safetensors", LAYOUTS, TENSORS.items(), {"b": "c"})
    assert same.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({name: TENSORS[name] for name in ("codes", "half")}, "2 tensors are missing, first offset"),
        (TENSORS | {"scale": torch.zeros(4)}, "scale is"),
        (TENSORS | {"codes": TENSORS["codes"].float()}, "codes is"),
    ],
)
def test_a_file_with_other_tensors_than_announced_does_not_appear(tmp_path, tensors, said):
    with pytest.raises(ValueError, match=said):
        write_in_parts(tmp_path / "a.safetensors", LAYOUTS, tensors.items(), {})
    assert list(tmp_path.iterdir()) == []


def test_several_files_are_read_as_one_into_memory_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_MAX_MAPPED_BYTES", 8)
    save_file({name: TENSORS[name] for name in ("codes", "scale")}, tmp_path / "1.safetensors")
    save_file({name: TENSORS[name] for name in ("offset", "half")}, tmp_path / "2.safetensors")
    files = TensorFiles([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert sorted(files.names) == sorted(TENSORS)
    for name in ("codes", "offset", "scale", "half", "codes"):
        read = files.read(name)
        assert torch.equal(read, TENSORS[name])
        assert files.shape(name) == tuple(read.shape)
        read.zero_()  # is not the file
    assert torch.equal(files.read("codes"), TENSORS["codes"])


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x05" * 100)
    with pytest.raises(DataError):
        TensorFiles([tmp_path / "a.safetensors"])
