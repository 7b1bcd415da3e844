"""Tests of caches filled before a training: whole, in shards, by Ray; the training then encodes nothing."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from lorakit.data import tensor_cache, tensor_shards
from lorakit.models.memory import format_bytes
from tests.commands import call
from tests.runs import make_dataset, make_recipe


def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> dict[str, object]:
    """Fill a cache of its own, and return its entries by kind and key."""
    cache = tmp_path / name
    monkeypatch.setenv("LORAKIT_CACHE", str(cache))
    assert call("cache", str(tmp_path / "recipe.yaml"), *words) == 0
    entries: dict[str, object] = {}
    for path in cache.rglob("*.safetensors"):
        shard = tensor_shards.Shard(path)
        for row, key in enumerate(shard.keys):
            values = [(n, t.dtype, t.tolist()) for n, t in shard.tensors(row).items()]
            entries[f"{path.parent.name}/{key}"] = values
    return entries


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    dataset = make_dataset(tmp_path / "data", 6)
    return make_recipe(tmp_path / "recipe.yaml", "tiny-dit", dataset, tmp_path / "run")


def test_shards_fill_the_cache_with_the_same_bytes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = filled(tmp_path, monkeypatch, "whole")
    assert {name.partition("/")[0] for name in whole} >= {"text", "latents"}
    parts = filled(tmp_path, monkeypatch, "parts", "--shard", "1/2")
    assert 0 < len(parts) < len(whole)
    parts = filled(tmp_path, monkeypatch, "parts", "--shard", "2/2")
    assert all(whole[name] == data for name, data in parts.items())
    assert {name for name in whole if name.startswith("latents")} <= parts.keys()
    capsys.readouterr()
    monkeypatch.setattr(tensor_cache.TensorCache, "put", lambda *args: pytest.fail("encoded again"))
    filled(tmp_path, monkeypatch, "whole", "--json")
    answer = json.loads(capsys.readouterr().out)
    sizes = answer.pop("cache_bytes")
    assert answer == {"images": 6, "encoded": 0, "cache": str(tmp_path / "whole")}
    files = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert sum(sizes.values()) == sum(path.stat().st_size for path in files)
    assert sizes.keys() >= {"text", "latents"}
    filled(tmp_path, monkeypatch, "whole")
    assert f"text {format_bytes(sizes['text'])}" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("ray") is None, reason='needs the extra: pip install "lorakit[ray]"')
def test_ray_fills_the_cache_with_the_same_bytes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert filled(tmp_path, monkeypatch, "ray", "--ray") == filled(tmp_path, monkeypatch, "plain")
