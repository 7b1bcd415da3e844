"""The JSON files of a real run have exactly the keys that `run_records` states."""

from __future__ import annotations

import pytest

from lorakit.core import storage
from lorakit.core.errors import NumericError
from lorakit.training import checkpoint, run_records
from lorakit.training.run_folder import RunFolder
from lorakit.training.step import TrainingStep
from tests import runs

PROMPTS = [
    {"id": "s", "prompt": "a sks ring", "kind": "subject", "seeds": [0]},
    {"id": "c", "prompt": "a ring", "kind": "class", "seeds": [0]},
    {"id": "u", "prompt": "a line", "kind": "unrelated", "seeds": [0]},
]


def test_the_files_of_a_run_have_the_stated_keys(tmp_path, monkeypatch):
    storage.write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    samples = {"prompts": str(tmp_path / "p.jsonl"), "num_inference_steps": 1, "clip_model": "embedded"}
    file = runs.make_recipe(
        tmp_path / "r.yaml",
        "tiny-unet",
        runs.make_dataset(tmp_path / "data"),
        tmp_path / "run",
        samples=samples,
        validate={"fraction": 0.34},
        train={"steps": 2, "save_every": 1, "precision": "fp32"},
        trigger="sks",
    )
    phases, plain = set(), RunFolder.heartbeat

    def heartbeat(self, phase, done, total, seconds_left):
        phases.add(phase)
        plain(self, phase, done, total, seconds_left)

    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(RunFolder, "heartbeat", heartbeat)
    run = runs.train(file)
    record = storage.read_json(run / run_records.RUN_FILE)
    assert record.keys() == run_records.RUN_KEYS.keys() - {"error", "changes"}
    assert record["status"] == "done"
    assert storage.read_json(run / run_records.HEARTBEAT_FILE).keys() == run_records.HEARTBEAT_KEYS.keys()
    rows = storage.read_jsonl(run / run_records.METRICS_FILE)
    others = {"lr_text_encoder", "lr_text_encoder_lora_b", "lr_lora_b", "lr_embedding", "loss_scale"}
    assert {key for row in rows for key in row} == run_records.METRICS_KEYS.keys() - others
    state = storage.read_json(checkpoint.step_folder(run, 2) / checkpoint.STATE_FILE)
    assert state.keys() == run_records.STATE_KEYS.keys()
    assert phases == {"text", "latents", "train", "validation", "samples"} <= set(run_records.PHASES)


def test_a_failed_run_records_its_error(tmp_path, monkeypatch):
    def fail(self):
        raise NumericError("not finite")

    monkeypatch.setattr(TrainingStep, "run", fail)
    data = runs.make_dataset(tmp_path / "data", 2)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run")
    with pytest.raises(NumericError):
        runs.train(file)
    record = RunFolder(tmp_path / "run").record()
    assert (record["status"], record["error"]) == ("failed", "not finite")
    assert record["status"] in run_records.STATUSES
    assert record.keys() <= run_records.RUN_KEYS.keys()
