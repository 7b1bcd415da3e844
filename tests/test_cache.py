from __future__ import annotations

import pytest
import torch

from lorakit import cache
from lorakit.errors import DataError, NumericError


@pytest.mark.parametrize("damage", ["cut", "flip", "zero", "empty"])
def test_a_damaged_entry_reads_as_missing(tmp_path, damage):
    store = cache.Cache("latents", tmp_path)
    key = cache.key(pixels="abc", crop=[0, 0, 1, 1])
    store.put(key, {"latent": torch.arange(12.0)}, "a.png")
    path = store.path(key)
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-8], "flip": data[:-1] + b"\x01", "zero": bytes(len(data)), "empty": b""}[damage]
    )
    assert torch.equal(store.get(key)["latent"], torch.arange(12.0))  # this process still has it in memory
    fresh = cache.Cache("latents", tmp_path)
    assert fresh.get(key) is None
    with pytest.raises(DataError, match="vanished"):
        fresh.need(key)


def test_every_part_of_a_key_counts():
    parts = {"pixels": "a", "crop": (0, 0, 8, 8), "vae": "h"}
    keys = {cache.key(**parts)} | {cache.key(**(parts | {name: "other"})) for name in parts}
    assert len(keys) == 4


def test_non_finite_values_are_never_stored(tmp_path):
    store = cache.Cache("latents", tmp_path)
    with pytest.raises(NumericError, match=r"a\.png"):
        store.put("ab", {"latent": torch.tensor([1.0, float("nan")])}, "a.png")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 100)
    store = cache.Cache("text", tmp_path)
    for name in ("aa", "bb", "cc"):
        store.put(name, {"x": torch.zeros(16)}, name)
    assert len(store._memory) == 1
    assert store.get("cc") is not None
