from __future__ import annotations

import pytest
import torch

from lorakit.core import storage
from lorakit.core.errors import DataError, NumericError
from lorakit.training import checkpoint


def make(step: int, value: float = 1.0) -> checkpoint.Checkpoint:
    tensors = {"unet.a.lora_A.weight": torch.full((2, 3), value)}
    moments = {"a|state1": torch.arange(6, dtype=torch.uint8), "a|step": torch.tensor(step)}
    return checkpoint.Checkpoint(step, tensors, moments, {"skipped_steps": []})


def test_the_newest_checkpoint_that_verifies_is_loaded(tmp_path):
    for step in (4, 8, 12):
        checkpoint.save_checkpoint(tmp_path, make(step), {"format": "pt"}, max_checkpoints=5)
    latest = checkpoint.latest_valid_checkpoint(tmp_path)
    assert latest.checkpoint.step == 12
    assert not latest.problems
    assert torch.equal(latest.checkpoint.optimizer["a|state1"], torch.arange(6, dtype=torch.uint8))
    (tmp_path / "checkpoints/step-00000012/optimizer.safetensors").write_bytes(b"")
    latest = checkpoint.latest_valid_checkpoint(tmp_path)
    assert latest.checkpoint.step == 8
    assert "step-00000012" in latest.problems[0]


def test_no_checkpoint_and_only_damaged_ones_differ(tmp_path):
    assert checkpoint.latest_valid_checkpoint(tmp_path) == checkpoint.LatestCheckpoint(None, [])
    folder = checkpoint.save_checkpoint(tmp_path, make(4), {}, max_checkpoints=1)
    (folder / "files.json").unlink()
    with pytest.raises(DataError, match="every checkpoint"):
        checkpoint.latest_valid_checkpoint(tmp_path)


def test_old_checkpoints_are_removed_only_after_the_new_one_is_committed(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, make(step), {}, max_checkpoints=2)

    def full(name, path):
        if name == "rename":
            raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "io_hook", full)
        with pytest.raises(Exception, match="cannot write"):
            checkpoint.save_checkpoint(tmp_path, make(3), {}, max_checkpoints=1)
    assert checkpoint.checkpoint_steps(tmp_path) == [1, 2]
    checkpoint.save_checkpoint(tmp_path, make(3), {}, max_checkpoints=1)
    assert checkpoint.checkpoint_steps(tmp_path) == [3]


def test_a_non_finite_tensor_is_never_saved(tmp_path):
    with pytest.raises(NumericError, match="not finite"):
        checkpoint.save_checkpoint(tmp_path, make(1, float("inf")), {}, max_checkpoints=1)
    assert checkpoint.checkpoint_steps(tmp_path) == []


def test_a_newer_format_is_refused(tmp_path):
    folder = checkpoint.save_checkpoint(tmp_path, make(1), {}, max_checkpoints=1)
    state = storage.read_json(folder / "state.json") | {"format_version": 99}
    files = {n: (folder / n).read_bytes() for n in ("adapter.safetensors", "optimizer.safetensors")}
    storage.commit_folder(folder, files | {"state.json": storage.dump_json(state).encode()})
    with pytest.raises(DataError, match="format 99"):
        checkpoint.latest_valid_checkpoint(tmp_path)
