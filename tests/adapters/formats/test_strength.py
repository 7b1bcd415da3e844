"""The strength of an exported adapter: recorded, or multiplied into the weights where that is exact."""

from __future__ import annotations

import json

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.formats.strength import is_exactly_scalable, with_strength
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from tests import tiny
from tests.adapters.formats.runs import export_exactly, train, train_method


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("method", ["lora", "loha", "lokr"])
def test_an_applied_strength_scales_every_delta_weight_exactly(tmp_path, method, layout):
    file = tmp_path / "a.safetensors"
    train("sd15", file) if method == "lora" else train_method("sd15", file, method)
    adapter = formats.read_adapter_file(file)
    assert is_exactly_scalable(adapter)
    consumer = "a1111" if layout == "kohya" else "diffusers"
    exported = export_exactly(
        file, consumer, tmp_path / "out", strength=0.7, apply_strength=True, base=tiny.tiny_folder("sd15")
    )
    written = formats.read_adapter_file(exported[0].path)
    for module, delta in adapter.deltas.items():
        expected = 0.7 * delta.dense()
        change = written.deltas[module].dense().reshape(expected.shape) - expected
        limit = max(1e-5, exported[0].approximation_error * 2) * expected.norm()
        assert change.norm() <= limit
    own = json.loads(storage.read_safetensors_metadata(exported[0].path)["lorakit"])
    assert own["applied_strength"] == 0.7
    assert "strength" not in own


@pytest.mark.parametrize("strength", [0.7, 2.0])
def test_a_strength_that_is_not_applied_is_in_the_metadata_and_changes_no_weight(tmp_path, strength):
    file = tmp_path / "a.safetensors"
    train("sd15", file, step=400)
    (plain,) = export_exactly(file, "a1111", tmp_path / "plain")
    (noted,) = export_exactly(file, "a1111", tmp_path / "noted", strength=strength)
    one, other = storage.read_safetensors(plain.path), storage.read_safetensors(noted.path)
    assert all(torch.equal(one[name], other[name]) for name in one)
    metadata = storage.read_safetensors_metadata(noted.path)
    own = json.loads(metadata["lorakit"])
    assert (own["strength"], own["step"]) == (strength, 400)
    hint = "Write sks in the prompt."
    assert metadata["modelspec.usage_hint"] == f"{hint} Use at strength {strength:g}."
    assert storage.read_safetensors_metadata(plain.path)["modelspec.usage_hint"] == hint


def test_the_strength_of_dora_is_not_multiplied_in(tmp_path):
    train_method("sd15", tmp_path / "a.safetensors", "dora")
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    assert not is_exactly_scalable(adapter)
    with pytest.raises(ConfigError, match="strength of dora") as caught:
        with_strength(adapter, 0.7, apply=True)
    assert "at strength 0.7 in the program" in str(caught.value)
    assert with_strength(adapter, 1.0, apply=True) is adapter
    assert with_strength(adapter, 0.7).lorakit_metadata["strength"] == 0.7
