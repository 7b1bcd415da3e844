from __future__ import annotations

import itertools
import os
import threading
import time

import psutil
import pytest
import yaml

from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.training import run_folder
from lorakit.training.run_changes import start_or_resume
from lorakit.training.run_folder import RunFolder

INPUTS = {"dataset": "d" * 64, "base": "b" * 64, "num_processes": 1}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "data").mkdir()
    return recipes.parse_recipe(
        {"base": "tiny-dit", "dataset": str(tmp_path / "data"), "out": str(tmp_path / "run")}
    )


def test_the_stored_recipe_has_absolute_paths_and_loads(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = recipes.parse_recipe(recipe.dump() | {"dataset": "data", "out": "run"})
    start_or_resume(RunFolder(relative.out), relative, INPUTS)
    monkeypatch.chdir("/")
    stored = recipes.load_recipe(tmp_path / "run/recipe.yaml")
    assert stored.dataset == tmp_path / "data"
    assert recipes.recipe_hash(stored) == recipes.recipe_hash(relative)
    assert "!!" not in yaml.safe_dump(stored.dump())


def test_a_second_process_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_WAIT", 0.1)
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


@pytest.mark.parametrize("phase", ["text", "latents", "masks"])
def test_a_phase_without_work_is_not_in_the_heartbeat(phase, recipe):
    run = RunFolder(recipe.out)
    start_or_resume(run, recipe, INPUTS)
    run.heartbeat(phase, 0, 0, 0.0)
    assert not (run.path / "heartbeat.json").exists()
    run.heartbeat("train", 7, 10, 0.0)
    run.heartbeat("train", 8, 10, 0.0, at_once=True)
    run.heartbeat(phase, 0, 0, 0.0)
    assert storage.read_json(run.path / "heartbeat.json")["step"] == 8


def test_the_heartbeat_has_the_phase_and_the_progress(recipe):
    run = RunFolder(recipe.out)
    run.heartbeat("latents", 3, 10, 12.6)
    assert not run.path.exists()  # nothing is written before the run exists
    start_or_resume(run, recipe, INPUTS)
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
    (run.path / ".partial-0-run.json").write_text("{")  # a crash in the middle of the first write
    RunFolder(recipe.out).check_paths(recipe)
    start_or_resume(run, recipe, INPUTS)
    run.log("later")
    assert (run.path / "log.txt").read_text() == "before the run exists\nlater\n"
    start_or_resume(run, recipe, INPUTS)


@pytest.mark.parametrize(
    ("name", "age", "stays"),
    [
        ("eval/.partial-{alive}-a", 9000, True),  # its writer is running
        ("exports/.partial-{dead}-a", 60, True),  # perhaps a writer on another machine
        (".partial-{dead}-a", 9000, False),
        ("eval/images/.partial-{dead}-a", 9000, False),
        ("checkpoints/.partial-step-00000004", 0, False),  # only the holder of the lock writes there
        ("checkpoints/.partial-{alive}-a", 0, False),
    ],
)
def test_a_start_removes_only_files_that_nobody_is_writing(recipe, name, age, stays):
    run = RunFolder(recipe.out)
    start_or_resume(run, recipe, INPUTS)
    dead = next(pid for pid in range(100_000, 200_000) if not psutil.pid_exists(pid))
    file = storage.write_text(run.path / name.format(alive=os.getpid(), dead=dead), "x")
    moment = time.time() - age
    os.utime(file, (moment, moment))
    start_or_resume(run, recipe, INPUTS)
    assert file.exists() == stays


def test_others_may_write_below_a_run_while_it_is_started_again(recipe):
    run = RunFolder(recipe.out)
    start_or_resume(run, recipe, INPUTS)
    stop, failures, count = threading.Event(), [], itertools.count()

    def write():
        while not stop.is_set():
            try:
                storage.write_text(run.path / f"eval/{next(count) % 7}.txt", "x" * 1000)
            except Exception as error:
                failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for _ in range(20):
        start_or_resume(run, recipe, INPUTS)
    stop.set()
    for writer in writers:
        writer.join()
    assert next(count) > 20
    assert failures == []


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "null",
        '{"settings": [], "inputs": {}, "versions": {}, "status": "done"}',
        '{"settings": {}, "inputs": {}, "versions": {}, "status": "finished"}',
        '{"settings": {"train.steps": "x"}, "inputs": {}, "versions": {}, "status": "done"}',
        '{"a": 1, "a": 2}',
        "{",
        "[" * 3000,
        '"\\ud800"',
    ],
)
def test_an_edited_record_is_an_error_that_names_the_file(recipe, content):
    run = RunFolder(recipe.out)
    start_or_resume(run, recipe, INPUTS)
    (run.path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json") as caught:
        start_or_resume(run, recipe, INPUTS)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"loss": 1}', b'{"step": "2"}', b"\xff\xfe", b'{"step": 2, "step": 3}', b"null"]
)
def test_an_unreadable_line_of_the_metrics_is_moved_away_and_stops_nothing(recipe, line):
    run = RunFolder(recipe.out)
    start_or_resume(run, recipe, INPUTS)
    run.metrics_file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n{"step": 4}\n')
    assert [row["step"] for row in run.metrics()] == [1, 3, 4]
    run.rewind_metrics(3)
    assert [row["step"] for row in storage.read_jsonl(run.metrics_file)] == [1, 3]
    assert "1 lines of metrics.jsonl cannot be read" in (run.path / "log.txt").read_text()
    assert (run.path / "metrics-unreadable.txt").read_bytes().count(b"\n") == 1
    run.rewind_metrics(3)
    assert (run.path / "metrics-unreadable.txt").read_bytes().count(b"\n") == 1
