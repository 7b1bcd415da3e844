from __future__ import annotations

import pytest
import yaml

from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training.run_folder import RunFolder

INPUTS = {"data": "d" * 64, "base": "b" * 64}


@pytest.fixture
def made(tmp_path):
    (tmp_path / "data").mkdir()
    return recipe.parse_recipe(
        {"base": "tiny-dit", "dataset": str(tmp_path / "data"), "out": str(tmp_path / "run")}
    )


def test_a_run_goes_on_with_what_it_began_with_and_names_any_difference(made):
    run = RunFolder(made.out)
    run.begin(made, INPUTS)
    run.begin(made, INPUTS)
    shown = recipe.parse_recipe(made.dump() | {"tracker": "wandb", "train": {"save_every": 7}})
    run.begin(shown, INPUTS)
    with pytest.raises(ConfigError, match=r"data: d+ -> e+"):
        run.begin(made, INPUTS | {"data": "e" * 64})
    with pytest.raises(ConfigError, match=r"adapter\.rank: 16 -> 8"):
        run.begin(recipe.parse_recipe(made.dump() | {"adapter": {"rank": 8}}), INPUTS)
    record = storage.read_json(run.path / "run.json")
    storage.write_json(run.path / "run.json", record | {"versions": record["versions"] | {"torch": "1.0"}})
    with pytest.raises(ConfigError, match=r"torch: 1\.0 -> "):
        run.begin(made, INPUTS)


def test_the_stored_recipe_holds_whole_paths_and_reads_back(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = recipe.parse_recipe(made.dump() | {"dataset": "data", "out": "run"})
    RunFolder(relative.out).begin(relative, INPUTS)
    monkeypatch.chdir("/")
    stored = recipe.load_recipe(tmp_path / "run/recipe.yaml")
    assert stored.dataset == tmp_path / "data"
    assert recipe.recipe_hash(stored) == recipe.recipe_hash(relative)
    assert "!!" not in yaml.safe_dump(stored.dump())


def test_a_second_process_is_kept_out(made):
    with RunFolder(made.out).lock(), pytest.raises(ConfigError, match="another process"):  # noqa: SIM117
        with RunFolder(made.out).lock():
            pass


def test_metrics_after_the_last_commit_are_dropped_on_resume(made):
    run = RunFolder(made.out)
    for step in range(1, 6):
        storage.append_jsonl(run.metrics_file, {"step": step, "loss": 1.0})
    with open(run.metrics_file, "ab") as file:
        file.write(b'{"step": 6, "lo')
    run.rewind_metrics(3)
    assert [row["step"] for row in storage.read_jsonl(run.metrics_file)] == [1, 2, 3]


def test_the_heartbeat_tells_where_the_run_stands(made):
    run = RunFolder(made.out)
    run.heartbeat("latents", 3, 10, 12.6)
    assert not run.path.exists()  # nothing is left in a folder before the run begins
    run.begin(made, INPUTS)
    run.heartbeat("train", 3, 10, 12.6)
    beat = storage.read_json(run.path / "heartbeat.json")
    assert (beat["phase"], beat["step"], beat["steps"], beat["seconds_left"]) == ("train", 3, 10, 13)
    run.heartbeat("train", 4, 10, 1.0)
    assert storage.read_json(run.path / "heartbeat.json")["step"] == 3  # not every step
    run.heartbeat("samples of step 4", 0, 2, 0.0)
    assert storage.read_json(run.path / "heartbeat.json")["phase"] == "samples of step 4"


@pytest.mark.parametrize("place", ["data", "data/inside", "file", "full"])
def test_places_that_would_mix_with_other_files(made, tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("x")
    other = recipe.parse_recipe(made.dump() | {"out": str(tmp_path / place)})
    with pytest.raises(ConfigError, match="out"):
        RunFolder(other.out).check_places(other)
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check_places(made)


def test_a_refused_or_crashed_start_leaves_a_folder_that_can_be_used(made):
    run = RunFolder(made.out)
    run.say("said before the run began")
    with run.lock():
        pass
    (run.path / ".partial-1-run.json").write_text("{")  # a crash in the middle of the first write
    RunFolder(made.out).check_places(made)
    run.begin(made, INPUTS)
    run.say("said later")
    assert (run.path / "log.txt").read_text() == "said before the run began\nsaid later\n"
    run.begin(made, INPUTS)
    assert not list(run.path.glob(".partial-*"))
