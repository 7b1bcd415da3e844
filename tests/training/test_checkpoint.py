from __future__ import annotations

import dataclasses

import pytest
import torch

from lorakit.core import storage
from lorakit.core.errors import DataError, NumericError
from lorakit.training import checkpoint


def make(step: int, value: float = 1.0) -> checkpoint.Checkpoint:
    tensors = {"unet.a.lora_A.weight": torch.full((2, 3), value)}
    moments = {"a|state1": torch.arange(6, dtype=torch.uint8), "a|step": torch.tensor(step)}
    return checkpoint.Checkpoint(step, tensors, moments, {"skipped_steps": []}, "run")


def test_the_newest_checkpoint_that_verifies_is_loaded(tmp_path):
    for step in (4, 8, 12):
        checkpoint.save_checkpoint(tmp_path, make(step), {"format": "pt"})
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
    folder = checkpoint.save_checkpoint(tmp_path, make(4), {})
    (folder / "files.json").unlink()
    with pytest.raises(DataError, match="any checkpoint"):
        checkpoint.latest_valid_checkpoint(tmp_path)


def test_optimizer_states_are_removed_only_after_the_new_checkpoint_and_adapters_stay(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, make(step), {})

    def full(name, path):
        if name == "rename":
            raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "io_hook", full)
        with pytest.raises(Exception, match="cannot write"):
            checkpoint.save_checkpoint(tmp_path, make(3), {})
    assert checkpoint.checkpoint_steps(tmp_path) == [1, 2]
    checkpoint.save_checkpoint(tmp_path, make(3), {})
    assert checkpoint.remove_optimizer_states(tmp_path, 1) == [1, 2]
    assert checkpoint.remove_optimizer_states(tmp_path, 1) == []
    assert checkpoint.checkpoint_steps(tmp_path) == [1, 2, 3]
    assert all((checkpoint.step_folder(tmp_path, s) / "adapter.safetensors").exists() for s in (1, 2, 3))
    assert checkpoint.latest_valid_checkpoint(tmp_path).checkpoint.step == 3


def test_a_checkpoint_without_optimizer_state_is_not_resumed_from(tmp_path):
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, make(step), {})
    checkpoint.remove_optimizer_states(tmp_path, 1)
    (checkpoint.step_folder(tmp_path, 2) / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="step-00000001 has no optimizer state"):
        checkpoint.latest_valid_checkpoint(tmp_path)


def test_a_checkpoint_of_another_run_is_not_resumed_from(tmp_path):
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, make(step), {})
    other = dataclasses.replace(make(3), run_hash="other")
    checkpoint.save_checkpoint(tmp_path, other, {})
    latest = checkpoint.latest_valid_checkpoint(tmp_path, {"run"})
    assert latest.checkpoint.step == 2
    assert latest.problems == ["checkpoint step-00000003 belongs to another run"]
    assert checkpoint.latest_valid_checkpoint(tmp_path, {"run", "other"}).checkpoint.step == 3
    with pytest.raises(DataError, match="belongs to another run"):
        checkpoint.latest_valid_checkpoint(tmp_path, {"third"})


@pytest.mark.parametrize(("left", "step"), [((1, 2), 2), ((1,), 1), ((), None)])
def test_a_checkpoint_that_the_run_has_recorded_and_that_is_gone_is_named(tmp_path, left, step):
    for one in left:
        checkpoint.save_checkpoint(tmp_path, make(one), {})
    if step is None:
        with pytest.raises(DataError, match="step-00000003 is missing"):
            checkpoint.latest_valid_checkpoint(tmp_path, saved_step=3)
    else:
        latest = checkpoint.latest_valid_checkpoint(tmp_path, saved_step=3)
        assert latest.checkpoint.step == step
        assert latest.problems == ["checkpoint step-00000003 is missing"]


def test_a_non_finite_tensor_is_never_saved(tmp_path):
    with pytest.raises(NumericError, match="not finite"):
        checkpoint.save_checkpoint(tmp_path, make(1, float("inf")), {})
    assert checkpoint.checkpoint_steps(tmp_path) == []


def test_a_newer_format_is_refused(tmp_path):
    folder = checkpoint.save_checkpoint(tmp_path, make(1), {})
    state = storage.read_json(folder / "state.json") | {"format_version": 99}
    files = {n: (folder / n).read_bytes() for n in ("adapter.safetensors", "optimizer.safetensors")}
    storage.commit_folder(folder, files | {"state.json": storage.dump_json(state).encode()})
    with pytest.raises(DataError, match="format 99"):
        checkpoint.latest_valid_checkpoint(tmp_path)
