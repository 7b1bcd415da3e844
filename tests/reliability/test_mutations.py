"""Mutations of storage and checkpoints: with each safety measure removed, a checker must find a problem.

A mutation replaces one operation (an fsync, a rename, the order of two writes) of the real code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorakit.core import checksums, platform, rng, storage
from lorakit.training import checkpoint
from tests.reliability import checks, corruption
from tests.reliability.tiny_training import DIT

Patch = pytest.MonkeyPatch


def replace_os(patch: Patch, **functions: Callable[..., Any]) -> None:
    """Give storage an `os` module with other functions."""
    patch.setattr(storage, "os", SimpleNamespace(**{**vars(os), **functions}))


def no_fsync_of_files(patch: Patch) -> None:
    replace_os(patch, fsync=lambda handle: None)


def no_fsync_of_folders(patch: Patch) -> None:
    patch.setattr(platform, "sync_folder", lambda folder: None)


def no_fsync_of_metrics(patch: Patch) -> None:
    patch.setattr(storage, "fsync_file", lambda path: None)


def no_fsync_above_a_new_folder(patch: Patch) -> None:
    def make_dir(path: Path) -> Path:
        Path(path).mkdir(parents=True, exist_ok=True)
        return Path(path)

    patch.setattr(storage, "make_dir", make_dir)


def no_zeros_accepted_in_metrics(patch: Patch) -> None:
    plain = storage.read_jsonl

    def read_jsonl(path: Path, *, torn_tail: bool = False) -> list[dict[str, Any]]:
        return plain(path, torn_tail=torn_tail and b"\0" not in path.read_bytes())

    patch.setattr(storage, "read_jsonl", read_jsonl)


def copy_instead_of_rename(patch: Patch) -> None:
    def replace(source: Path, target: Path) -> None:
        if Path(source).is_file():
            _copy(Path(source), Path(target))
            Path(source).unlink()
            return
        Path(target).mkdir()
        for file in sorted(Path(source).iterdir()):
            _copy(file, Path(target) / file.name)
        shutil.rmtree(source)

    replace_os(patch, replace=replace)


def _copy(source: Path, target: Path) -> None:
    """Copy a file as an operation of its own, at which the disk is recorded."""
    storage._write_synced(target, source.read_bytes())


def checksums_first(patch: Patch) -> None:
    plain = storage._write_synced
    delayed: dict[Path, bytes] = {}

    def write_synced(path: Path, data: bytes) -> None:
        if "step-" not in path.parent.name:
            plain(path, data)
        elif path.name != checksums.CHECKSUMS_FILE:
            delayed[path] = data
        else:
            plain(path, data)
            for file, content in delayed.items():
                plain(file, content)
            delayed.clear()

    patch.setattr(storage, "_write_synced", write_synced)


def old_checkpoints_removed_first(patch: Patch) -> None:
    plain = storage.commit_folder

    def commit_folder(folder: Path, files: dict[str, bytes]) -> Path:
        for step in checkpoint.checkpoint_steps(folder.parent.parent):
            storage.remove_folder(checkpoint.step_folder(folder.parent.parent, step))
        return plain(folder, files)

    patch.setattr(storage, "commit_folder", commit_folder)


@pytest.mark.parametrize(
    "mutate",
    [
        no_fsync_of_files,
        no_fsync_of_folders,
        no_fsync_of_metrics,
        no_fsync_above_a_new_folder,
        no_zeros_accepted_in_metrics,
        copy_instead_of_rename,
        checksums_first,
        old_checkpoints_removed_first,
    ],
    ids=lambda mutate: mutate.__name__,
)
def test_a_checkpoint_can_be_lost_with(mutate, tmp_path, monkeypatch):
    mutate(monkeypatch)
    assert checks.commits(tmp_path, keep=1)


@pytest.mark.parametrize(
    "mutate", [copy_instead_of_rename, no_fsync_of_files], ids=lambda mutate: mutate.__name__
)
def test_a_replaced_file_can_be_torn_with(mutate, tmp_path, monkeypatch):
    mutate(monkeypatch)
    assert checks.rewritten(tmp_path)


def test_without_keyed_randomness_the_bytes_differ(recorded, monkeypatch):
    training, _, instants = recorded(DIT, False)
    monkeypatch.setattr(rng, "keyed_normal", lambda shape, *_: torch.randn(shape))
    training.delete_run()
    assert training.train()[0] == 0
    other = training.finished()
    crashed = next(instant for instant in reversed(instants) if instant.committed == 10)
    assert any("other adapter" in line for line in checks.resume(training, other, crashed))


def test_without_verification_damage_is_not_noticed(recorded, monkeypatch):
    training, reference, instants = recorded(DIT, False)
    monkeypatch.setattr(checksums, "find_folder_damage", lambda folder, names=(): None)
    assert corruption.survives(training, reference, instants, "adapter.safetensors", "flip")


def test_without_falling_back_a_damaged_checkpoint_ends_the_run(recorded, monkeypatch):
    plain = checkpoint.checkpoint_steps
    training, reference, instants = recorded(DIT, False)
    monkeypatch.setattr(checkpoint, "checkpoint_steps", lambda run: plain(run)[-1:])
    assert corruption.survives(training, reference, instants, "adapter.safetensors", "missing")
