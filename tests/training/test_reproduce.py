"""A run again from what it stored; a new run from an adapter."""

from __future__ import annotations

import pytest
import torch

from lorakit import adapters
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training import reproduce
from lorakit.training.trainer import Trainer
from tests import runs, tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    base = tiny.tiny_folder("sd15")
    return runs.train(runs.make_recipe(folder / "r.yaml", base, data, folder / "run", export=["diffusers"]))


def test_reproduce_trains_again_and_says_equal(first, tmp_path, capsys):
    assert main.main(["reproduce", str(first), "--out", str(tmp_path / "again")]) == 0
    assert "equal, byte for byte" in capsys.readouterr().out
    assert not (tmp_path / "again/exports").exists()


def test_reproduce_finds_a_difference(first, tmp_path):
    again = tmp_path / "again"
    tensors = storage.read_safetensors(first / "adapter.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 0.5
    storage.write_safetensors(again / "adapter.safetensors", tensors)
    record = storage.read_json(first / "run.json")
    record["versions"] = record["versions"] | {"torch": "1.0"}
    storage.write_json(again / "run.json", record)
    found = reproduce.compare_runs(first, again)
    assert not found.equal
    assert found.tensors == {name: pytest.approx(0.5)}
    assert "torch: " in found.text()
    assert "-> 1.0" in found.text()


def test_reproduce_refuses_what_cannot_come_out_the_same(first, data, tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe\.yaml"):
        reproduce.prepare_reproduction(tmp_path, tmp_path / "x", [])
    with pytest.raises(ConfigError, match="no longer says"):
        reproduce.prepare_reproduction(first, tmp_path / "x", ["optimizer.lr=0.5"])
    other = runs.make_dataset(tmp_path / "other", 5)
    with pytest.raises(ConfigError, match="not what this run was trained on: data"):
        reproduce.prepare_reproduction(first, tmp_path / "x", [f"dataset={other}"])
    copy = tmp_path / "copy"
    for name in ("recipe.yaml", "run.json"):
        storage.copy_file(first / name, copy / name)
    with pytest.raises(ConfigError, match="not finished"):
        reproduce.prepare_reproduction(copy, tmp_path / "x", [])
    moved = tmp_path / "moved"
    for file in data.iterdir():
        storage.copy_file(file, moved / file.name)
    assert reproduce.prepare_reproduction(first, tmp_path / "x", [f"dataset={moved}"])[2] == 1


def start(tmp_path, data, first, **changes):
    base = tiny.tiny_folder("sd15")
    return runs.make_recipe(
        tmp_path / "r.yaml", base, data, tmp_path / "run", init_from=str(first), **changes
    )


def test_init_from_is_a_new_run_that_starts_with_the_weights(first, data, tmp_path, monkeypatch):
    file = start(tmp_path, data, first)
    began = {}
    plain = Trainer.fit

    def fit(self):
        began["step"] = self.state.step
        began["weights"] = adapters.state(self.made.denoiser, "unet")
        plain(self)

    monkeypatch.setattr(Trainer, "fit", fit)
    run = runs.train(file)
    wanted = storage.read_safetensors(first / "adapter.safetensors")
    assert began["step"] == 0
    assert all(torch.equal(wanted[name], tensor) for name, tensor in began["weights"].items())
    assert (run / "adapter.safetensors").read_bytes() != (first / "adapter.safetensors").read_bytes()
    inputs = storage.read_json(run / "run.json")["inputs"]
    assert inputs["init_from"] == storage.sha256_file(first / "adapter.safetensors")


def test_init_from_is_checked_before_anything_loads(first, data, tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.training.setup.build_session", None)
    with pytest.raises(ConfigError, match="no such adapter"):
        runs.train(start(tmp_path, data, tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"rank 4, this run 8[^$]*set adapter\.rank=4"):
        runs.train(start(tmp_path, data, first, adapter={"rank": 8}))
    wrong = runs.make_recipe(
        tmp_path / "d.yaml", tiny.tiny_folder("sd35"), data, tmp_path / "d", init_from=str(first)
    )
    with pytest.raises(ConfigError, match="family sd15, this run sd3"):
        runs.train(wrong)


def test_init_from_another_adapter_is_not_the_same_run(first, data, tmp_path):
    file = start(tmp_path, data, first)
    runs.train(file, "train.steps=2")
    other = storage.copy_file(first / "adapter.safetensors", tmp_path / "moved.safetensors")
    runs.train(file, "train.steps=2", f"init_from={other}")  # the same bytes elsewhere: the same run
    tensors = storage.read_safetensors(other)
    facts = adapters.read_adapter_metadata(other)
    changed = {name: tensor * 2 for name, tensor in tensors.items()}
    storage.write_safetensors(other, changed, adapters.pack_metadata(facts))
    with pytest.raises(ConfigError, match="init_from: "):
        runs.train(file, "train.steps=2", f"init_from={other}")


def test_deterministic_asks_torch_for_it(first, data, tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    base = tiny.tiny_folder("sd15")
    file = runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run")
    seen = []
    plain = Trainer.fit
    monkeypatch.setattr(
        Trainer, "fit", lambda self: (seen.append(torch.are_deterministic_algorithms_enabled()), plain(self))
    )
    run = runs.train(file, "train.deterministic=true")
    assert seen == [True]
    assert (run / "adapter.safetensors").read_bytes() != b""
    assert recipe.load_recipe(file).train.deterministic is False
    runs.train(file, f"out={tmp_path / 'other'}")
    assert seen == [True, False]
