"""One continuous run in a tracker: each value of each step once, whatever happens between the sessions."""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import PartialState

from lorakit.config.monitoring import TrackerConfig
from lorakit.core import storage
from lorakit.training.run_records import TRACKER_KEYS
from lorakit.training.trackers import process
from lorakit.training.trackers.sender import RunMovedError, Sender
from tests import runs
from tests.long_tier import long
from tests.training.tracker_runs import READERS, WrittenRun, read_wandb, tensorboard_values, wandb_values

COMPLETE = {
    "loss": list(range(1, 13)),
    "lr": list(range(1, 13)),
    "validation_loss": [4, 8, 12],
    "samples": [4, 8, 12],
}


@pytest.fixture(autouse=True)
def _own_state() -> Any:
    """The trackers' process has accelerate's state for itself."""
    yield
    PartialState._reset_state()


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
@pytest.mark.parametrize(
    "sessions",
    [
        [(0, 6), (4, 12)],
        [(0, 3), (0, 12)],
        [(0, 6), (4, 7), (4, 9), (8, 12)],
    ],
    ids=["killed after a checkpoint", "killed before any checkpoint", "killed three times"],
)
def test_steps_that_are_repeated_after_a_kill_appear_once_in_one_run(name, sessions, tmp_path):
    run = WrittenRun(tmp_path / "dog")
    for checkpoint, last in sessions:
        run.session(TrackerConfig(name=name), checkpoint, last, done=last == 12)
    assert READERS[name](run.path) == COMPLETE
    (record,) = storage.read_json(run.path / "tracker.json")["runs"]
    assert record["complete"]
    assert record.keys() == {key for keys in TRACKER_KEYS for key in keys.split(", ")}
    if name == "wandb":
        assert read_wandb(run.path)[0] == {record["id"]}


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_was_away_receives_the_whole_history_later(name, tmp_path):
    run = WrittenRun(tmp_path / "dog")
    run.train(0, 6)
    run.session(TrackerConfig(name=name), 4, 12, done=True)
    assert READERS[name](run.path) == COMPLETE


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_values_that_come_late_are_sent_with_their_own_step(name, tmp_path):
    """As when a resumed run validates more often than before."""
    run = WrittenRun(tmp_path / "dog")
    run.session(TrackerConfig(name=name), 0, 7)
    run.rewind(6)
    run.append(6, validation_loss=0.5, clip_t=0.2)
    run.session(TrackerConfig(name=name), 6, 12, done=True)
    late = {"validation_loss": [4, 6, 8, 12], "clip_t": [6]}
    assert READERS[name](run.path) == COMPLETE | late


def test_values_of_a_tracker_killed_before_it_recorded_them_are_not_doubled_in_tensorboard(tmp_path):
    run, config = WrittenRun(tmp_path / "dog"), TrackerConfig(name="tensorboard")
    run.session(config, 0, 4)
    run.session(config, 4, 8, lost_record=True)
    run.session(config, 8, 12, done=True)
    assert tensorboard_values(run.path) == COMPLETE


def test_rows_of_a_wandb_killed_before_it_recorded_them_have_the_same_number_again(tmp_path):
    """wandb keeps one row for each number."""
    run, config = WrittenRun(tmp_path / "dog"), TrackerConfig(name="wandb")
    run.session(config, 0, 4)
    run.session(config, 4, 8, lost_record=True)
    run.session(config, 8, 12, done=True)
    ids, rows = read_wandb(run.path)
    assert len(ids) == 1
    assert {(row["_step"], row["step"]) for row in rows} == {(step, step) for step in range(1, 13)}


def test_a_removed_tensorboard_folder_is_written_again(tmp_path):
    run, config = WrittenRun(tmp_path / "dog"), TrackerConfig(name="tensorboard")
    run.session(config, 0, 6)
    (run.path / "tensorboard").rename(tmp_path / "elsewhere")
    run.session(config, 4, 12, done=True)
    assert tensorboard_values(run.path) == COMPLETE


class FakeServer(types.ModuleType):
    """A wandb module with a server that keeps what it is sent: as the real one, only rows above the last."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.rows: dict[int, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        self.reachable = True
        self.config = types.SimpleNamespace(update=lambda values, **_: None)
        self.Settings = self.Image = lambda *_, **options: options

    def setup(self) -> Any:
        return types.SimpleNamespace(settings=types.SimpleNamespace(project=None))

    def init(self, **options: Any) -> Any:
        self.runs.append(options)
        first = max(self.rows, default=-1) + 1
        return types.SimpleNamespace(
            offline=False, disabled=False, starting_step=first, url="https://wandb/run", log=self._log,
            define_metric=lambda *_, **__: None, finish=lambda **_: None,
        )  # fmt: skip

    def _log(self, values: dict[str, Any], step: int, commit: bool) -> None:
        if self.reachable and step > max(self.rows, default=-1):
            self.rows[step] = values


@pytest.mark.parametrize("lost_after", [0, 2, 5])
def test_what_a_wandb_server_never_received_is_sent_again(lost_after, tmp_path, monkeypatch):
    server = FakeServer()
    monkeypatch.setitem(sys.modules, "wandb", server)
    run, config = WrittenRun(tmp_path / "dog"), TrackerConfig(name="wandb")
    run.session(config, 0, lost_after)
    server.reachable = False
    run.session(config, 0, 7)
    server.reachable = True
    run.session(config, 4, 12, done=True)
    assert [row["step"] for row in server.rows.values()] == list(range(1, 13))
    assert sum("validation_loss" in row for row in server.rows.values()) == 3
    assert len({options["id"] for options in server.runs}) == 1
    assert {options["resume"] for options in server.runs} == {"allow"}


def test_another_project_gets_a_run_of_its_own_and_the_first_is_continued_afterwards(tmp_path, monkeypatch):
    server = FakeServer()
    monkeypatch.setitem(sys.modules, "wandb", server)
    run = WrittenRun(tmp_path / "dog")
    for project, checkpoint, last in (("a", 0, 2), ("b", 2, 4), ("a", 4, 6)):
        run.session(TrackerConfig(name="wandb", project=project), checkpoint, last)
    first, second, third = (options["id"] for options in server.runs)
    assert first == third != second
    assert [options["project"] for options in server.runs] == ["a", "b", "a"]


def test_a_damaged_tracker_json_is_reported_and_starts_a_new_run(tmp_path, capsys):
    run, config = WrittenRun(tmp_path / "dog"), TrackerConfig(name="tensorboard")
    run.session(config, 0, 3)
    storage.write_text(run.path / "tracker.json", '{"runs": [{"tracker": 3')
    run.session(config, 3, 4)
    assert "tracker.json is damaged" in capsys.readouterr().out
    assert tensorboard_values(run.path)["loss"] == [1, 2, 3, 4]


def test_a_run_folder_that_was_moved_away_is_not_written_at_its_old_place(tmp_path):
    run = WrittenRun(tmp_path / "dog")
    sender = Sender(TrackerConfig(name="tensorboard"), run.path, print)
    sender.start()
    run.path.rename(tmp_path / "dog-old-1")
    run.path.mkdir()
    with pytest.raises(RunMovedError):
        sender.send(0)
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("name", [pytest.param("wandb", marks=long), "tensorboard"])
def test_a_killed_and_restarted_training_is_one_run_in_its_tracker(name, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "CLOSE_TIMEOUT", 120.0)
    prompts = runs.make_prompts(tmp_path / "p.jsonl")
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", runs.make_dataset(tmp_path / "data", 4), tmp_path / "dog",
        tracker=name, validate={"fraction": 0.25, "every": 4},
        samples={"prompts": str(prompts), "every": 6, "num_inference_steps": 1},
    )  # fmt: skip
    child = runs.start(file)
    while runs.steps_logged(tmp_path / "dog") < 6:
        assert child.is_alive()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    run = runs.train(file)
    rows = storage.read_jsonl(run / "metrics.jsonl")
    metrics: dict[str, list[int]] = {}
    for row in rows:
        for key in row.keys() - {"step"}:
            metrics.setdefault(key, []).append(row["step"])
    if name == "wandb":
        assert wandb_values(run) == metrics | {"samples": [0, 6, 12]}
        assert len(read_wandb(run)[0]) == 1
    else:
        assert _tensorboard_scalars(run) == metrics
    places = {"wandb": "wandb: offline in ", "tensorboard": f"tensorboard: {run}/tensorboard (view it with"}
    assert sum(line.startswith(places[name]) for line in (run / "log.txt").read_text().splitlines()) == 1


def _tensorboard_scalars(run: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
