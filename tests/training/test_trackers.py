"""No tracker can stop, change or slow a run: the real wandb, with servers that are down, broken or silent."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lorakit.config.monitoring import TrackerConfig
from lorakit.core import storage
from lorakit.training import trackers
from lorakit.training.trackers import process
from tests import runs
from tests.long_tier import some_long
from tests.network import servers
from tests.training.tracker_runs import WrittenRun

STEPS = ("train.steps=3", "train.save_every=3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 3)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the same run without a tracker."""
    folder = tmp_path_factory.mktemp("plain")
    run = runs.train(runs.make_recipe(folder / "r.yaml", "tiny-dit", data, folder / "run"), *STEPS)
    return (run / "adapter.safetensors").read_bytes()


@pytest.fixture
def recipe_file(data: Path, tmp_path: Path) -> Path:
    return runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", tracker="wandb")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CLOSE_TIMEOUT", 3.0)


def online(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def library(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, source: str) -> None:
    """Put a faulty library before the real one on the path of the tracker's process."""
    storage.write_text(folder / f"{name}.py", source)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def assert_equal_and_complete(run: Path, plain: bytes) -> None:
    assert (run / "adapter.safetensors").read_bytes() == plain
    rows = storage.read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert storage.read_json(run / "run.json")["status"] == "done"


def test_wandb_offline_receives_a_runs_metrics(recipe_file, plain, monkeypatch):
    monkeypatch.setattr(process, "CLOSE_TIMEOUT", 120.0)
    run = runs.train(recipe_file, *STEPS)
    records = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(records) == 1
    assert b"grad_norm" in records[0].read_bytes()
    assert_equal_and_complete(run, plain)


@pytest.mark.parametrize("kind", some_long(["refused", "500", "silent"], "silent"))
def test_a_failing_tracker_server_does_not_change_training(
    kind, recipe_file, plain, monkeypatch, short, capfd
):
    with servers.faulty(kind) as address:
        online(monkeypatch, address)
        run = runs.train(recipe_file, *STEPS)
    assert_equal_and_complete(run, plain)
    assert "wandb: not finished within 3 s" in capfd.readouterr().err


MISSING = "raise ModuleNotFoundError(\"No module named 'wandb'\")"
FAKE = """
from types import SimpleNamespace
config = SimpleNamespace(update=lambda values, **_: None)
def setup(): return SimpleNamespace(settings=SimpleNamespace(project=None))
def Settings(**_): pass
def Image(*_, **__): return "image"
def log(values, step, commit): {log}
def finish(**_): {finish}
def init(**_):
    return SimpleNamespace(offline=False, disabled=False, starting_step=0, url="https://wandb.test/run",
                           define_metric=lambda *_, **__: None, log=log, finish=finish)
"""


def written_run(folder: Path) -> WrittenRun:
    run = WrittenRun(folder / "dog")
    run.train(0, 12)
    storage.write_json(run.path / "run.json", {**storage.read_json(run.path / "run.json"), "step": 12})
    return run


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (MISSING, "could not start (No module named 'wandb')"),
        (FAKE.format(log="raise ConnectionError('down')", finish="pass"), "could not log (down)"),
        (FAKE.format(log="pass", finish="raise ConnectionError('down')"), "could not finish (down)"),
    ],
)
def test_a_library_that_fails_is_reported_once(
    source, words, recipe_file, plain, tmp_path, monkeypatch, capfd
):
    library(monkeypatch, tmp_path / "lib", "wandb", source)
    monkeypatch.setattr(process, "CLOSE_TIMEOUT", 120.0)
    run = runs.train(recipe_file, *STEPS)
    assert_equal_and_complete(run, plain)
    errors = capfd.readouterr().err
    assert words in errors
    assert errors.count("metrics.jsonl has everything") == 1
    assert words in (run / "log.txt").read_text()


def test_a_tensorboard_that_is_broken_is_reported(data, plain, tmp_path, monkeypatch, capfd):
    library(monkeypatch, tmp_path / "lib", "tensorboard", "raise ModuleNotFoundError('no tensorboard')")
    monkeypatch.setattr(process, "CLOSE_TIMEOUT", 120.0)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", tracker="tensorboard")
    assert_equal_and_complete(runs.train(file, *STEPS), plain)
    assert "tensorboard: could not start" in capfd.readouterr().err


def test_a_tracker_that_hangs_is_never_waited_for_and_the_wait_at_the_end_is_bounded(
    tmp_path, monkeypatch, capfd
):
    library(monkeypatch, tmp_path / "lib", "wandb", "import time\ntime.sleep(1000)")
    monkeypatch.setattr(process, "CLOSE_TIMEOUT", 0.5)
    lines: list[str] = []
    tracker = trackers.TrackerProcess(TrackerConfig(name="wandb"), written_run(tmp_path).path, lines.append)
    start = time.monotonic()
    for step in range(20_000):
        tracker.report(step)
    assert time.monotonic() - start < 2
    start = time.monotonic()
    assert tracker.close() is False
    assert time.monotonic() - start < 5
    assert len(lines) == 1
    assert "not finished within 0.5 s" in lines[0]
    assert "the same command again sends the rest" in lines[0]


def test_a_slow_tracker_receives_every_step_in_order_and_the_address_is_logged(tmp_path, monkeypatch):
    received = tmp_path / "received.jsonl"
    log = f"print(__import__('json').dumps([step, values]), file=open({str(received)!r}, 'a'))"
    slow = "import time\ntime.sleep(0.5)\n" + FAKE.format(log=log, finish="pass")
    library(monkeypatch, tmp_path / "lib", "wandb", slow)
    monkeypatch.setattr(process, "CLOSE_TIMEOUT", 120.0)
    run, lines = written_run(tmp_path), list[str]()
    with trackers.TrackerProcess(TrackerConfig(name="wandb"), run.path, lines.append) as tracker:
        for step in range(13):
            tracker.report(step)
    rows = [json.loads(line) for line in received.read_text().splitlines()]
    assert [row[0] for row in rows] == list(range(1, 13))
    assert rows[7][1] == {
        "step": 8, "loss": 0.8, "lr": 1e-4, "validation_loss": 0.08, "samples": ["image", "image"],
    }  # fmt: skip
    assert lines == ["wandb: https://wandb.test/run"]


def test_a_finished_run_sends_later_what_its_tracker_did_not_receive(tmp_path, monkeypatch):
    received = tmp_path / "received.txt"
    fake = FAKE.format(log=f"print(step, file=open({str(received)!r}, 'a'))", finish="pass")
    library(monkeypatch, tmp_path / "lib", "wandb", fake)
    run, config, lines = written_run(tmp_path), TrackerConfig(name="wandb"), list[str]()
    trackers.send_rest(config, run.path, lines.append)
    assert received.read_text().split() == [str(step) for step in range(1, 13)]
    trackers.send_rest(config, run.path, lines.append)
    assert received.read_text().split()[-1] == "12"
    assert len(received.read_text().split()) == 12
    assert lines == [
        "wandb: sending what it has not received of this run",
        "wandb: https://wandb.test/run",
    ]


def test_without_a_tracker_no_process_starts(tmp_path):
    tracker = trackers.TrackerProcess(TrackerConfig(name="none"), tmp_path, print)
    tracker.report(1)
    assert tracker.close() is True
    assert tracker._child is None
    assert list(tmp_path.iterdir()) == []
