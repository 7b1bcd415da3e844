"""A base divided among two processes (FSDP2): the loss curve of one process, resumed and exported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models.memory import sharding
from lorakit.training import checkpoint, sharded_step
from tests import runs, tiny
from tests.training.process_pairs import join, run_both

TRAIN = {"steps": 6, "batch_size": 2, "accumulate": 1, "save_every": 3, "precision": "fp32"}
MEMORY = {"shard": True, "gradient_checkpointing": 1.0}


def recipe_file(folder: Path, data: Path, memory: dict[str, Any], **train: int) -> Path:
    return runs.make_recipe(
        folder / "r.yaml",
        tiny.tiny_folder("sd35"),
        data,
        folder / "run",
        train=TRAIN | train,
        memory=memory,
        export=["diffusers"],
        samples={"prompts": str(runs.make_prompts(folder / "prompts.jsonl")), "every": 100},
    )


def _train(rank: int, port: int, file: Path, counts: Path) -> None:
    """Train as one process of two, and note the bytes of frozen weights and the passes of the network."""
    from lorakit.training.train import train_recipe

    join(rank, port)
    sharded: list[Any] = []
    build = sharded_step.build_step

    def note_build(session: Any, *arguments: Any) -> Any:
        sharded.append(session.denoiser)
        return build(session, *arguments)

    sharded_step.build_step = note_build
    train_recipe(recipes.load_recipe(file))
    network = sharded[0]
    storage.write_json(counts / f"{rank}.json", {"bytes": sharding.shard_bytes(network)})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The folders of a sharded run of two processes and of the same run in one, and their data."""
    folder = tmp_path_factory.mktemp("sharded")
    data = runs.make_dataset(folder / "data")
    file = recipe_file(folder / "two", data, MEMORY)
    assert run_both(_train, file, folder) == [0, 0]
    one = runs.train(recipe_file(folder / "one", data, {}, accumulate=2))
    return folder, one, data


def _metrics(run: Path, name: str) -> list[float]:
    return [row[name] for row in storage.read_jsonl(run / "metrics.jsonl") if name in row]


def test_a_divided_base_has_the_loss_curve_of_a_whole_one(pair):
    """Images of three shapes: the processes have different numbers of passes of their own."""
    folder, one, _ = pair
    two = folder / "two" / "run"
    assert len(_metrics(one, "loss")) == TRAIN["steps"]
    for name in ("loss", "grad_norm", "validation_loss"):
        assert _metrics(two, name) == pytest.approx(_metrics(one, name), abs=1e-6), name
    files = [storage.read_safetensors(run / "adapter.safetensors") for run in (one, two)]
    for key, value in files[0].items():
        torch.testing.assert_close(files[1][key], value, rtol=0, atol=1e-6)
    assert sorted(f.name for f in (two / "exports").iterdir()) == sorted(
        f.name for f in (one / "exports").iterdir()
    )


def test_each_process_keeps_about_half_of_the_blocks(pair):
    folder, _, _ = pair
    whole = tiny.tiny_pipeline("sd35").transformer
    size = sum(p.numel() * p.element_size() for p in whole.parameters())
    kept = [storage.read_json(folder / f"{rank}.json")["bytes"] for rank in range(2)]
    assert all(0.4 * size < number < 0.8 * size for number in kept), (size, kept)


def test_a_sharded_run_goes_on_in_one_process(pair, tmp_path):
    folder, one, data = pair
    run = tmp_path / "run"
    shutil.copytree(folder / "two" / "run", run)
    shutil.rmtree(checkpoint.step_folder(run, 6))
    record = storage.read_json(run / "run.json")
    storage.write_json(run / "run.json", record | {"status": "interrupted", "checkpoint_step": 3})
    runs.train(recipe_file(tmp_path, data, {}, accumulate=2))
    assert _metrics(run, "loss") == pytest.approx(_metrics(one, "loss"), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"memory": {"shard": True, "quantize": "nf4"}}, "memory.quantize"),
        ({"memory": {"shard": True, "stream": 0.5}}, "memory.stream"),
        ({"memory": {"shard": True, "offload_modulation": True}}, "memory.offload_modulation"),
    ],
)
def test_memory_settings_that_sharding_replaces_are_refused(tmp_path, changes, word):
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", tmp_path, tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=word):
        recipes.load_recipe(file)


@pytest.mark.parametrize(("setting", "variable", "expected"), [
    (None, "true", True), (None, "", False), (False, "true", False), (True, "", True),
])  # fmt: skip
def test_accelerate_decides_where_the_recipe_does_not(monkeypatch, setting, variable, expected):
    monkeypatch.setenv(sharding.USE_FSDP_VARIABLE, variable)
    assert sharding.is_requested(setting) is expected


def test_a_loss_whose_passes_differ_by_process_is_refused(tmp_path):
    changes = {"memory": {"shard": True}, "objective": {"output_preservation": 1.0}, "trigger": "sks"}
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", tmp_path, tmp_path / "run", class_noun="thing", **changes
    )
    loaded = recipes.load_recipe(file)
    assert not sharded_step.check_sharding(loaded, 1)
    with pytest.raises(ConfigError, match="not all processes"):
        sharded_step.check_sharding(loaded, 2)
