from __future__ import annotations

import pytest
import yaml

from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training.run_folder import RunFolder

INPUTS = {"dataset": "d" * 64, "base": "b" * 64, "num_processes": 1}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "data").mkdir()
    return recipes.parse_recipe(
        {"base": "tiny-dit", "dataset": str(tmp_path / "data"), "out": str(tmp_path / "run")}
    )


def test_a_run_is_resumed_with_the_same_settings_and_inputs_only_and_names_any_difference(recipe):
    run = RunFolder(recipe.out)
    run.start_or_resume(recipe, INPUTS)
    run.start_or_resume(recipe, INPUTS)
    other_output = recipes.parse_recipe(recipe.dump() | {"tracker": "wandb", "train": {"save_every": 7}})
    run.start_or_resume(other_output, INPUTS)
    with pytest.raises(ConfigError, match=r"dataset: d+ -> e+"):
        run.start_or_resume(recipe, INPUTS | {"dataset": "e" * 64})
    with pytest.raises(ConfigError, match=r"adapter\.rank: 16 -> 8"):
        run.start_or_resume(recipes.parse_recipe(recipe.dump() | {"adapter": {"rank": 8}}), INPUTS)
    record = storage.read_json(run.path / "run.json")
    storage.write_json(run.path / "run.json", record | {"versions": record["versions"] | {"torch": "1.0"}})
    with pytest.raises(ConfigError, match=r"torch: 1\.0 -> "):
        run.start_or_resume(recipe, INPUTS)


def test_the_stored_recipe_has_absolute_paths_and_loads(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = recipes.parse_recipe(recipe.dump() | {"dataset": "data", "out": "run"})
    RunFolder(relative.out).start_or_resume(relative, INPUTS)
    monkeypatch.chdir("/")
    stored = recipes.load_recipe(tmp_path / "run/recipe.yaml")
    assert stored.dataset == tmp_path / "data"
    assert recipes.recipe_hash(stored) == recipes.recipe_hash(relative)
    assert "!!" not in yaml.safe_dump(stored.dump())


def test_a_second_process_is_refused(recipe):
    with RunFolder(recipe.out).lock(), pytest.raises(ConfigError, match="another process"):  # noqa: SIM117
        with RunFolder(recipe.out).lock():
            pass


def test_metrics_after_the_last_checkpoint_are_dropped_on_resume(recipe):
    run = RunFolder(recipe.out)
    for step in range(1, 6):
        storage.append_jsonl(run.metrics_file, {"step": step, "loss": 1.0})
    with open(run.metrics_file, "ab") as file:
        file.write(b'{"step": 6, "lo')
    run.rewind_metrics(3)
    assert [row["step"] for row in storage.read_jsonl(run.metrics_file)] == [1, 2, 3]


def test_the_heartbeat_has_the_phase_and_the_progress(recipe):
    run = RunFolder(recipe.out)
    run.heartbeat("latents", 3, 10, 12.6)
    assert not run.path.exists()  # nothing is written before the run exists
    run.start_or_resume(recipe, INPUTS)
    run.heartbeat("train", 3, 10, 12.6)
    beat = storage.read_json(run.path / "heartbeat.json")
    assert (beat["phase"], beat["step"], beat["total_steps"], beat["seconds_left"]) == ("train", 3, 10, 13)
    run.heartbeat("train", 4, 10, 1.0)
    assert storage.read_json(run.path / "heartbeat.json")["step"] == 3  # not every step
    run.heartbeat("samples", 0, 2, 0.0)
    assert storage.read_json(run.path / "heartbeat.json")["phase"] == "samples"


@pytest.mark.parametrize("name", ["data", "data/inside", "file", "full"])
def test_an_output_folder_that_would_mix_with_other_files_is_refused(recipe, tmp_path, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("x")
    other = recipes.parse_recipe(recipe.dump() | {"out": str(tmp_path / name)})
    with pytest.raises(ConfigError, match="out"):
        RunFolder(other.out).check_paths(other)
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check_paths(recipe)


def test_a_refused_or_crashed_start_leaves_a_usable_folder(recipe):
    run = RunFolder(recipe.out)
    run.log("before the run exists")
    with run.lock():
        pass
    (run.path / ".partial-1-run.json").write_text("{")  # a crash in the middle of the first write
    RunFolder(recipe.out).check_paths(recipe)
    run.start_or_resume(recipe, INPUTS)
    run.log("later")
    assert (run.path / "log.txt").read_text() == "before the run exists\nlater\n"
    run.start_or_resume(recipe, INPUTS)
    assert not list(run.path.glob(".partial-*"))
