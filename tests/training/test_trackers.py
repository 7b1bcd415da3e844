"""No tracker can stop, change or slow a run: the real wandb, with servers that are down, broken or silent."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from lorakit.core import storage
from lorakit.training import trackers
from tests import runs
from tests.network import servers

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
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 3.0)


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
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 60.0)
    run = runs.train(recipe_file, *STEPS)
    records = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(records) == 1
    assert b"grad_norm" in records[0].read_bytes()
    assert_equal_and_complete(run, plain)


@pytest.mark.parametrize("kind", ["refused", "500", "silent"])
def test_a_failing_tracker_server_does_not_change_training(
    kind, recipe_file, plain, monkeypatch, short, capfd
):
    with servers.faulty(kind) as address:
        online(monkeypatch, address)
        run = runs.train(recipe_file, *STEPS)
    assert_equal_and_complete(run, plain)
    assert "wandb: not finished within 3 s" in capfd.readouterr().err


MISSING = "raise ModuleNotFoundError(\"No module named 'wandb'\")"
FAILING = """
class Settings:
    def __init__(self, **_): pass
class Image(Settings):
    def __init__(self, *_, **__): pass
def init(**_):
    return Run()
class Run:
    def log(self, values, step): {log}
    def finish(self): {finish}
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (MISSING, "could not start (No module named 'wandb')"),
        (FAILING.format(log="raise ConnectionError('down')", finish="pass"), "could not log (down)"),
        (FAILING.format(log="pass", finish="raise ConnectionError('down')"), "could not finish (down)"),
    ],
)
def test_a_library_that_is_missing_or_fails_is_reported_once(
    source, words, recipe_file, plain, tmp_path, monkeypatch, capfd
):
    library(monkeypatch, tmp_path / "lib", "wandb", source)
    assert_equal_and_complete(runs.train(recipe_file, *STEPS), plain)
    errors = capfd.readouterr().err
    assert words in errors
    assert errors.count("metrics.jsonl has everything") == 1


def test_a_missing_tensorboard_is_reported(data, plain, tmp_path, monkeypatch, capfd):
    library(monkeypatch, tmp_path / "lib", "tensorboard", "raise ModuleNotFoundError('no tensorboard')")
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 60.0)  # torch is imported first
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", tracker="tensorboard")
    assert_equal_and_complete(runs.train(file, *STEPS), plain)
    assert "tensorboard: could not start" in capfd.readouterr().err


def test_the_queue_is_bounded_and_never_waited_for(tmp_path, monkeypatch, capfd):
    library(monkeypatch, tmp_path, "wandb", "import time\ntime.sleep(1000)")
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 0.5)
    tracker = trackers.TrackerProcess("wandb", tmp_path, {})
    start = time.monotonic()
    for step in range(20_000):
        tracker.log_metrics({"loss": 1.0, "grad_norm": 1.0, "lr": 1e-4, "step_seconds": 0.1}, step)
    assert time.monotonic() - start < 2
    assert 0 < len(tracker._buffer) <= trackers.MAX_QUEUE_BYTES
    assert tracker._dropped > 5000
    start = time.monotonic()
    assert tracker.close() is False
    assert time.monotonic() - start < 5
    assert capfd.readouterr().err.count("metrics.jsonl has everything") == 1


def test_dropped_messages_are_counted_once_at_the_end(tmp_path, monkeypatch, capfd):
    late = "import time\ntime.sleep(1)\n" + FAILING.format(log="pass", finish="pass")
    library(monkeypatch, tmp_path, "wandb", late)
    monkeypatch.setattr(trackers, "MAX_QUEUE_BYTES", 200)  # bytes, beside the 64 KiB of a pipe
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 60.0)
    tracker = trackers.TrackerProcess("wandb", tmp_path, {})
    for step in range(5000):
        tracker.log_metrics({"loss": 1.0}, step)
    dropped = tracker._dropped
    assert dropped > 0
    assert tracker.close() is False
    assert f"too slow, and {dropped} messages were dropped" in capfd.readouterr().err


def test_metrics_and_images_arrive_in_order(tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    record = f"print(__import__('json').dumps([step, sorted(values)]), file=open({str(log)!r}, 'a'))"
    library(monkeypatch, tmp_path, "wandb", FAILING.format(log=record, finish="pass"))
    image = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(image)
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 60.0)
    tracker = trackers.TrackerProcess("wandb", tmp_path, {"note": "x" * 200_000})  # more than a pipe holds
    for step in range(1, 2000):
        tracker.log_metrics({"loss": 1.0}, step)
    tracker.log_images("samples", [image], 2000)
    assert tracker.close() is True
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row[0] for row in rows] == list(range(1, 2001))
    assert rows[-1] == [2000, ["samples"]]


def test_without_a_tracker_no_process_starts(tmp_path):
    tracker = trackers.TrackerProcess("none", tmp_path, {})
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_images("samples", [], 1)
    assert tracker.close() is True
    assert tracker._child is None
