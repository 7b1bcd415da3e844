"""Rows of features on disk: by image, in files that survive kills, damage and other processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lorakit.core import storage
from lorakit.core.errors import DiskError
from lorakit.evaluation import feature_store
from lorakit.evaluation.feature_store import FeatureStore
from tests.long_tier import long


def rows(names: list[str], width: int = 3, offset: float = 0.0) -> dict[str, np.ndarray]:
    return {name: np.full(width, offset + number, np.float32) for number, name in enumerate(names)}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("width", [1, 5, 768])
def test_rows_are_read_by_another_store(tmp_path, width):
    added = rows(["a", "b", "c"], width)
    FeatureStore(tmp_path).add(added)
    stored = FeatureStore(tmp_path).get(["c", "a", "unknown"])
    assert stored.keys() == {"a", "c"}
    assert all((stored[name] == added[name]).all() for name in stored)


def test_scores_that_do_not_apply_stay_nan(tmp_path):
    FeatureStore(tmp_path).add({"a": np.array([np.nan], np.float32), "b": np.array([0.5], np.float32)})
    stored = FeatureStore(tmp_path).get(["a", "b"])
    assert np.isnan(stored["a"]).all()
    assert stored["b"] == np.float32(0.5)


def test_rows_that_another_process_adds_are_seen_at_the_next_read(tmp_path):
    one, other = FeatureStore(tmp_path), FeatureStore(tmp_path)
    one.add(rows(["a"]))
    assert other.get(["a", "b"]).keys() == {"a"}
    one.add(rows(["b"]))
    assert other.get(["a", "b"]).keys() == {"a", "b"}


def test_many_small_files_become_one_and_no_row_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "MAX_FILES", 5)
    store = FeatureStore(tmp_path)
    for number in range(12):
        store.add(rows([f"image {number}"], offset=number))
        assert len(files(tmp_path)) <= 6
    stored = FeatureStore(tmp_path).get([f"image {number}" for number in range(12)])
    assert [row[0] for row in stored.values()] == list(range(12))


def test_a_full_judge_keeps_its_newest_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "MAX_FILES", 2)
    monkeypatch.setattr(feature_store, "MAX_JUDGE_BYTES", 4 * (12 + 32))
    store = FeatureStore(tmp_path)
    for number in range(9):
        store.add(rows([f"image {number}"], offset=number))
        os.utime(files(tmp_path)[0])
    stored = FeatureStore(tmp_path).get([f"image {number}" for number in range(9)])
    assert 4 <= len(stored) <= 6
    assert "image 8" in stored
    assert "image 0" not in stored


def test_judges_that_were_used_longest_ago_make_room(tmp_path, monkeypatch):
    for number, name in enumerate(("old", "middle", "new")):
        FeatureStore(tmp_path / name).add(rows(["a"], 1000))
        for file in files(tmp_path / name):
            os.utime(file, (number * 1000 + 1000, number * 1000 + 1000))
    monkeypatch.setattr(feature_store, "MAX_CACHE_BYTES", 9000)
    FeatureStore(tmp_path / "current").add(rows(["a"], 1000))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["current", "middle", "new"]


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "renamed"])
def test_a_damaged_file_counts_as_missing(tmp_path, damage):
    store = FeatureStore(tmp_path)
    store.add(rows(["a"], 8))
    store.add(rows(["b"], 8))
    first = files(tmp_path)[0]
    data = first.read_bytes()
    if damage == "truncated":
        first.write_bytes(data[:-5])
    elif damage == "changed":
        first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "empty":
        first.write_bytes(b"")
    else:
        shutil.copy(first, first.with_name("0" * 32 + ".safetensors"))
        first.unlink()
    assert len(FeatureStore(tmp_path).get(["a", "b"])) == 1


class Killed(BaseException):
    """An exception that no code of lorakit catches."""


@pytest.mark.parametrize("operation", ["write", "sync", "rename", "sync_folder", "remove"])
def test_a_kill_at_any_moment_loses_at_most_the_rows_being_added(tmp_path, monkeypatch, operation):
    monkeypatch.setattr(feature_store, "MAX_FILES", 3)
    names = [f"image {number}" for number in range(10)]
    added = 0
    for position in range(60):
        calls = 0

        def hook(name: str, path: Path, position: int = position) -> None:
            nonlocal calls
            calls += name == operation
            if name == operation and calls == position + 1:
                raise Killed

        store = FeatureStore(tmp_path)
        monkeypatch.setattr(storage, "io_hook", hook)
        try:
            while added < len(names):
                store.add(rows([names[added]], offset=added))
                added += 1
        except Killed:
            pass
        finally:
            monkeypatch.setattr(storage, "io_hook", lambda name, path: None)
        stored = FeatureStore(tmp_path).get(names)
        assert set(names[:added]) <= stored.keys()
        assert all(stored[name][0] == names.index(name) for name in stored)
        if added == len(names):
            return
    raise AssertionError("the rows were never all added")


def add_many(folder: Path, first: int) -> None:
    feature_store.MAX_FILES = 3
    store = FeatureStore(folder)
    for number in range(first, first + 20):
        store.add(rows([f"image {number}"], offset=number))


@long
def test_two_processes_that_add_and_join_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=add_many, args=(tmp_path, first)) for first in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    stored = FeatureStore(tmp_path).get([f"image {number}" for number in range(40)])
    assert {int(row[0]) for row in stored.values()} == set(range(40))


def test_a_cache_that_cannot_be_written_is_one_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="the cache cannot be written") as caught:
        FeatureStore(tmp_path / "file").add(rows(["a"]))
    assert "LORAKIT_CACHE" in str(caught.value)
