"""Metadata and configurations of adapters that are not what they should be: errors, never tracebacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorakit.adapters.formats import read_adapter_file
from lorakit.core import storage
from lorakit.core.errors import DataError

NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OWN = {"rank": 2, "alpha": 2, "family": "sd15"}
OWN_DAMAGED = {
    "cut off": '{"rank": 2',
    "doubled rank": '{"rank": 2, "rank": 4, "alpha": 2, "family": "sd15"}',
    "deep": "[" * 5000,
    "a list": "[1]",
    "half a character": '{"rank": 2, "alpha": 2, "family": "\\ud800"}',
    "long alpha": '{"rank": 2, "alpha": ' + "9" * 400 + ', "family": "sd15"}',
    "patterns as pairs": json.dumps(OWN | {"rank_pattern": [["x", 2]]}),
    "patterns as text": json.dumps(OWN | {"alpha_pattern": "x"}),
    "no family": json.dumps({"rank": 2, "alpha": 2}),
    "token": json.dumps(OWN | {"textual_inversion": 5}),
}
PEFT_DAMAGED = {
    "a list": "[1]",
    "rank as text": '{"r": "x", "lora_alpha": "y"}',
    "alpha as a list": '{"r": 2, "lora_alpha": [2]}',
    "patterns as a list": '{"r": 2, "lora_alpha": 2, "alpha_pattern": [1]}',
    "infinite alpha": '{"r": 2, "lora_alpha": Infinity}',
    "doubled alpha": '{"r": 2, "lora_alpha": 2, "lora_alpha": 4}',
}


def _write(file: Path, metadata: dict[str, str] | None = None) -> Path:
    factors = {"lora_A": torch.ones(2, 320), "lora_B": torch.ones(320, 2)}
    tensors = {f"unet.{NAME}.{part}.weight": tensor for part, tensor in factors.items()}
    return storage.write_safetensors(file, tensors, metadata or {"format": "pt"})


@pytest.mark.parametrize("text", OWN_DAMAGED.values(), ids=OWN_DAMAGED)
def test_damaged_metadata_of_lorakit_is_an_error(tmp_path: Path, text: str) -> None:
    file = _write(tmp_path / "a.safetensors", {"lorakit": text})
    with pytest.raises(DataError, match="the metadata of the adapter is damaged") as caught:
        read_adapter_file(file)
    assert str(file) in str(caught.value.where)


@pytest.mark.parametrize("text", PEFT_DAMAGED.values(), ids=PEFT_DAMAGED)
def test_a_damaged_configuration_of_peft_is_an_error(tmp_path: Path, text: str) -> None:
    _write(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(DataError):
        read_adapter_file(tmp_path)
    file = _write(tmp_path / "b.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(DataError):
        read_adapter_file(file)


def test_intact_ones_are_read(tmp_path: Path) -> None:
    own = _write(tmp_path / "a.safetensors", {"lorakit": json.dumps(OWN)})
    assert read_adapter_file(own).rank == 2
    _write(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    assert read_adapter_file(tmp_path).rank == 2
