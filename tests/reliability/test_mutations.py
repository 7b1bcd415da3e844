"""Each safety line taken away: the checkers must turn red, or they prove nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lorakit.core import rng, storage
from lorakit.training import checkpoint
from tests.reliability import checks, corruption
from tests.reliability.world import DIT


def _no_file_sync(path: Path, data: bytes) -> None:
    storage.io_hook("write", path)
    path.write_bytes(data)
    storage.io_hook("sync", path)


def _in_place(folder: Path, files: dict[str, bytes]) -> Path:
    storage.make_dir(folder)
    for name, data in sorted(files.items()):
        storage._write_synced(folder / name, data)
    manifest = {n: {"size": len(d), "sha256": storage.sha256_bytes(d)} for n, d in files.items()}
    storage._write_synced(folder / storage.CHECKSUMS_FILE, storage.dump_json(manifest).encode())
    storage._sync_folder(folder)
    storage._sync_folder(folder.parent)
    return folder


def _write_in_place(path: Path, data: bytes) -> Path:
    storage.make_dir(path.parent)
    storage._write_synced(path, data)
    storage._sync_folder(path.parent)
    return path


def _manifest_first(folder: Path, files: dict[str, bytes]) -> Path:
    manifest = {n: {"size": len(d), "sha256": storage.sha256_bytes(d)} for n, d in files.items()}
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    storage.make_dir(partial)
    storage._write_synced(partial / storage.CHECKSUMS_FILE, storage.dump_json(manifest).encode())
    for name, data in sorted(files.items()):
        storage._write_synced(partial / name, data)
    storage._sync_folder(partial)
    storage.io_hook("rename", folder)
    partial.replace(folder)
    storage._sync_folder(folder.parent)
    return folder


_save = checkpoint.save_checkpoint


def _prune_first(run: Path, made: checkpoint.Checkpoint, metadata: dict[str, str], *, keep: int) -> Path:
    for old in checkpoint.checkpoint_steps(run)[: len(checkpoint.checkpoint_steps(run)) + 1 - keep]:
        storage.remove_folder(run / checkpoint.FOLDER / f"step-{old:08d}")
    return _save(run, made, metadata, keep=keep)


def _unsynced_dir(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _only_a_cut_line(path: Path, *, torn_tail: bool = False) -> list[dict[str, object]]:
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


COMMITS = {
    "fsync of files": (storage, "_write_synced", _no_file_sync),
    "fsync of folders": (storage, "_sync_folder", lambda folder: storage.io_hook("sync_folder", folder)),
    "fsync of the rows": (storage, "sync", lambda path: None),
    "fsync above a new folder": (storage, "make_dir", _unsynced_dir),
    "forgiving zeros in the rows": (storage, "read_jsonl", _only_a_cut_line),
    "rename of a folder": (storage, "commit_folder", _in_place),
    "manifest last": (storage, "commit_folder", _manifest_first),
    "prune after the commit": (checkpoint, "save", _prune_first),
}


@pytest.mark.parametrize("line", COMMITS)
def test_without_it_a_commit_can_be_lost(tmp_path, monkeypatch, line):
    room, name, mutant = COMMITS[line]
    monkeypatch.setattr(room, name, mutant)
    assert checks.commits(tmp_path, keep=1)


@pytest.mark.parametrize("mutant", ["rename", "fsync"])
def test_without_it_a_replaced_file_can_be_torn(tmp_path, monkeypatch, mutant):
    if mutant == "rename":
        monkeypatch.setattr(storage, "write_bytes", _write_in_place)
    else:
        monkeypatch.setattr(storage, "_write_synced", _no_file_sync)
    assert checks.rewritten(tmp_path)


def _global_normal(shape: tuple[int, ...], *_: object) -> torch.Tensor:
    return torch.randn(shape)


def test_without_keyed_randomness_the_bytes_differ(recorded, monkeypatch):
    made, _, seen = recorded(DIT, False)
    monkeypatch.setattr(rng, "keyed_normal", _global_normal)
    made.forget()
    assert made.train()[0] == 0
    other = made.finished()
    crashed = next(instant for instant in reversed(seen) if instant.committed == 10)
    assert any("other adapter" in line for line in checks.resume(made, other, crashed))


def test_without_verification_damage_is_not_noticed(recorded, monkeypatch):
    made, reference, seen = recorded(DIT, False)
    monkeypatch.setattr(storage, "find_folder_damage", lambda folder, names=(): None)
    assert corruption.survives(made, reference, seen, "adapter.safetensors", "flip")


def test_without_falling_back_damage_is_the_end(recorded, monkeypatch):
    def newest(run: Path) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        return checkpoint.load_checkpoint(
            run / checkpoint.FOLDER / f"step-{checkpoint.checkpoint_steps(run)[-1]:08d}"
        ), []

    made, reference, seen = recorded(DIT, False)
    monkeypatch.setattr(checkpoint, "latest_valid_checkpoint", newest)
    assert corruption.survives(made, reference, seen, "adapter.safetensors", "missing")
