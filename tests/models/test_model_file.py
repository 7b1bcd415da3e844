"""Models in one file: the same numbers from TorchScript and ONNX, and errors with the file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lorakit.core.errors import ConfigError
from lorakit.models.model_file import ModelFile
from tests.tiny.onnx_files import mean_color_model, redness_model


class MeanColor(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(2, 3))


def torchscript(file: Path, module: torch.nn.Module) -> Path:
    torch.jit.script(module).save(str(file))
    return file


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_model_file_computes_what_it_was_written_for(kind, tmp_path):
    if kind == "onnx":
        file = mean_color_model(tmp_path / "m.onnx")
    else:
        file = torchscript(tmp_path / "m.pt", MeanColor())
    model = ModelFile(file, "--face-model")
    pixels = torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    (output,) = model(pixels)
    np.testing.assert_allclose(output, pixels.mean(dim=(2, 3)).numpy(), rtol=1e-5)
    description = model.describe()
    assert description["model"] == file.name
    assert len(description["weights_sha256"]) == 64
    assert model.side is None


def test_the_side_of_the_input_is_read_from_an_onnx_file(tmp_path):
    model = ModelFile(redness_model(tmp_path / "m.onnx", side=24), "--mask-model")
    assert model.side == 24
    with pytest.raises(ConfigError, match="does not take an image of 1 x 3 x 8 x 8"):
        model(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["m.onnx", "m.pt"])
def test_a_file_that_is_no_model_is_an_error_with_its_name(name, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        ModelFile(tmp_path / name, "--face-model")
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        ModelFile(tmp_path / name, "--face-model")
    assert name in str(caught.value)
    assert "--face-model" in str(caught.value)


def test_without_onnxruntime_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    file = mean_color_model(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="ONNX files cannot be read") as caught:
        ModelFile(file, "--face-model")
    assert "pip install onnxruntime" in str(caught.value)
