"""Reproduction of a run from its stored recipe; a new run from an adapter."""

from __future__ import annotations

import pytest
import torch

from lorakit import adapters
from lorakit.cli import main
from lorakit.config import recipe as recipes
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.training import reproduce
from lorakit.training.trainer import Trainer
from tests import runs, tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    base = tiny.tiny_folder("sd15")
    return runs.train(runs.make_recipe(folder / "r.yaml", base, data, folder / "run", export=["diffusers"]))


def test_reproduce_trains_again_and_reports_equal_bytes(finished, tmp_path, capsys):
    assert main.main(["reproduce", str(finished), "--out", str(tmp_path / "reproduced")]) == 0
    assert "equal, byte for byte" in capsys.readouterr().out
    assert not (tmp_path / "reproduced/exports").exists()


def test_reproduce_finds_a_difference(finished, tmp_path):
    reproduced = tmp_path / "reproduced"
    tensors = storage.read_safetensors(finished / "adapter.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 0.5
    storage.write_safetensors(reproduced / "adapter.safetensors", tensors)
    record = storage.read_json(finished / "run.json")
    record["versions"] = record["versions"] | {"torch": "1.0"}
    storage.write_json(reproduced / "run.json", record)
    result = reproduce.compare_runs(finished, reproduced)
    assert not result.identical
    assert result.tensor_differences == {name: pytest.approx(0.5)}
    assert "torch: " in result.summary()
    assert "-> 1.0" in result.summary()


def test_reproduce_refuses_changed_settings_and_inputs(finished, data, tmp_path):
    with pytest.raises(ConfigError, match="not a run"):
        reproduce.prepare_reproduction(tmp_path, tmp_path / "x", [])
    with pytest.raises(ConfigError, match="not those that this run was trained with"):
        reproduce.prepare_reproduction(finished, tmp_path / "x", ["optimizer.lr=0.5"])
    other = runs.make_dataset(tmp_path / "other", 5)
    with pytest.raises(ConfigError, match="not the data or base that this run was trained on: dataset"):
        reproduce.prepare_reproduction(finished, tmp_path / "x", [f"dataset={other}"])
    copy = tmp_path / "copy"
    for name in ("recipe.yaml", "run.json"):
        storage.copy_file(finished / name, copy / name)
    with pytest.raises(ConfigError, match="not finished"):
        reproduce.prepare_reproduction(copy, tmp_path / "x", [])
    moved = tmp_path / "moved"
    for file in data.iterdir():
        storage.copy_file(file, moved / file.name)
    reproduction = reproduce.prepare_reproduction(finished, tmp_path / "x", [f"dataset={moved}"])
    assert reproduction.num_processes == 1


def start(tmp_path, data, finished, **changes):
    base = tiny.tiny_folder("sd15")
    return runs.make_recipe(
        tmp_path / "r.yaml", base, data, tmp_path / "run", init_from=str(finished), **changes
    )


def test_init_from_is_a_new_run_that_starts_with_the_weights(finished, data, tmp_path, monkeypatch):
    file = start(tmp_path, data, finished)
    seen = {}
    plain = Trainer.fit

    def fit(self):
        seen["step"] = self.state.step
        seen["weights"] = adapters.adapter_state_dict(self.session.networks)
        plain(self)

    monkeypatch.setattr(Trainer, "fit", fit)
    run = runs.train(file)
    expected = storage.read_safetensors(finished / "adapter.safetensors")
    assert seen["step"] == 0
    assert all(torch.equal(expected[name], tensor) for name, tensor in seen["weights"].items())
    assert (run / "adapter.safetensors").read_bytes() != (finished / "adapter.safetensors").read_bytes()
    inputs = storage.read_json(run / "run.json")["inputs"]
    assert inputs["init_from"] == checksums.sha256_file(finished / "adapter.safetensors")


def test_init_from_is_checked_before_anything_loads(finished, data, tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.training.setup.build_session", None)
    with pytest.raises(ConfigError, match="no such adapter"):
        runs.train(start(tmp_path, data, tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"rank 4, this run 2[^$]*set adapter\.rank=4"):
        runs.train(start(tmp_path, data, finished, adapter={"rank": 2}))
    other_family = runs.make_recipe(
        tmp_path / "d.yaml", tiny.tiny_folder("sd35"), data, tmp_path / "d", init_from=str(finished)
    )
    with pytest.raises(ConfigError, match="family sd15, this base model sd3"):
        runs.train(other_family)


def test_init_from_another_adapter_is_not_the_same_run(finished, data, tmp_path):
    file = start(tmp_path, data, finished)
    runs.train(file, "train.steps=2")
    other = storage.copy_file(finished / "adapter.safetensors", tmp_path / "moved.safetensors")
    runs.train(file, "train.steps=2", f"init_from={other}")  # the same bytes elsewhere: the same run
    tensors = storage.read_safetensors(other)
    metadata = adapters.read_adapter_metadata(other)
    changed = {name: tensor * 2 for name, tensor in tensors.items()}
    storage.write_safetensors(other, changed, adapters.pack_metadata(metadata))
    with pytest.raises(ConfigError, match="init_from: "):
        runs.train(file, "train.steps=2", f"init_from={other}")


def test_deterministic_training_uses_deterministic_algorithms(finished, data, tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    base = tiny.tiny_folder("sd15")
    file = runs.make_recipe(tmp_path / "r.yaml", base, data, tmp_path / "run")
    enabled = []
    plain = Trainer.fit
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda self: (enabled.append(torch.are_deterministic_algorithms_enabled()), plain(self)),
    )
    run = runs.train(file, "train.deterministic=true")
    assert enabled == [True]
    assert (run / "adapter.safetensors").read_bytes() != b""
    assert recipes.load_recipe(file).train.deterministic is False
    runs.train(file, f"out={tmp_path / 'other'}")
    assert enabled == [True, False]
