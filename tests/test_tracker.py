"""wandb for real, offline; and the promise that no tracker can stop a run."""

from __future__ import annotations

import pytest
from PIL import Image

from lorakit import tracker
from tests import runs


def test_wandb_offline_receives_a_runs_metrics(tmp_path):
    data = runs.make_dataset(tmp_path / "data", 3)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", tracker="wandb")
    run = runs.train(file, "train.steps=3", "train.save_every=3")
    records = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(records) == 1
    assert b"grad_norm" in records[0].read_bytes()


class Broken:
    def log(self, metrics, step):
        raise ConnectionError("down")

    def images(self, name, files, step):
        raise ConnectionError("down")

    def close(self):
        raise ConnectionError("down")


@pytest.mark.parametrize("act", ["log", "images", "close"])
def test_a_failing_tracker_is_reported_once_and_left_alone(monkeypatch, tmp_path, capsys, act):
    monkeypatch.setattr(tracker, "_Wandb", lambda run, config: Broken())
    guarded = tracker.Guarded("wandb", tmp_path, {})
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    calls = {
        "log": lambda: guarded.log({"loss": 1.0}, 1),
        "images": lambda: guarded.images("samples", [picture], 1),
        "close": guarded.close,
    }
    for _ in range(3):
        calls[act]()
    assert capsys.readouterr().err.count("metrics.jsonl has everything") == 1


def test_a_missing_package_is_no_reason_to_fail(monkeypatch, tmp_path, capsys):
    def missing(run, config):
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setattr(tracker, "_Wandb", missing)
    tracker.Guarded("wandb", tmp_path, {}).log({"loss": 1.0}, 1)
    assert "could not start" in capsys.readouterr().err
