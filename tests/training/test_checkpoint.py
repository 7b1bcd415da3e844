from __future__ import annotations

import pytest
import torch

from lorakit.core import storage
from lorakit.core.errors import DataError, NumericError
from lorakit.training import checkpoint


def make(step: int, value: float = 1.0) -> checkpoint.Checkpoint:
    tensors = {"unet.a.lora_A.weight": torch.full((2, 3), value)}
    moments = {"a|state1": torch.arange(6, dtype=torch.uint8), "a|step": torch.tensor(step)}
    return checkpoint.Checkpoint(step, tensors, moments, {"skipped": []})


def test_the_newest_that_verifies_is_read_whole(tmp_path):
    for step in (4, 8, 12):
        checkpoint.save_checkpoint(tmp_path, make(step), {"format": "pt"}, keep=5)
    found, problems = checkpoint.latest_valid_checkpoint(tmp_path)
    assert found.step == 12
    assert not problems
    assert torch.equal(found.optimizer["a|state1"], torch.arange(6, dtype=torch.uint8))
    (tmp_path / "checkpoints/step-00000012/optimizer.safetensors").write_bytes(b"")
    found, problems = checkpoint.latest_valid_checkpoint(tmp_path)
    assert found.step == 8
    assert "step-00000012" in problems[0]


def test_nothing_found_and_all_broken_differ(tmp_path):
    assert checkpoint.latest_valid_checkpoint(tmp_path) == (None, [])
    folder = checkpoint.save_checkpoint(tmp_path, make(4), {}, keep=1)
    (folder / "files.json").unlink()
    with pytest.raises(DataError, match="every checkpoint"):
        checkpoint.latest_valid_checkpoint(tmp_path)


def test_retention_prunes_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, make(step), {}, keep=2)

    def full(name, path):
        if name == "rename":
            raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "io_hook", full)
        with pytest.raises(Exception, match="cannot write"):
            checkpoint.save_checkpoint(tmp_path, make(3), {}, keep=1)
    assert checkpoint.checkpoint_steps(tmp_path) == [1, 2]
    checkpoint.save_checkpoint(tmp_path, make(3), {}, keep=1)
    assert checkpoint.checkpoint_steps(tmp_path) == [3]


def test_a_non_finite_tensor_is_never_saved(tmp_path):
    with pytest.raises(NumericError, match="not finite"):
        checkpoint.save_checkpoint(tmp_path, make(1, float("inf")), {}, keep=1)
    assert checkpoint.checkpoint_steps(tmp_path) == []


def test_a_later_format_is_refused(tmp_path):
    folder = checkpoint.save_checkpoint(tmp_path, make(1), {}, keep=1)
    state = storage.read_json(folder / "state.json") | {"format": 99}
    files = {n: (folder / n).read_bytes() for n in ("adapter.safetensors", "optimizer.safetensors")}
    storage.commit_folder(folder, files | {"state.json": storage.dump_json(state).encode()})
    with pytest.raises(DataError, match="format 99"):
        checkpoint.latest_valid_checkpoint(tmp_path)
