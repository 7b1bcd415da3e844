from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from lorakit.core import checksums, safetensors_header, storage
from lorakit.core.errors import DataError, DiskError


class Crash(BaseException):
    """A power cut."""


def fail_at(monkeypatch, number, error):
    seen = []

    def operation(name, path):
        seen.append(name)
        if len(seen) == number:
            raise error

    monkeypatch.setattr(storage, "io_hook", operation)
    return seen


def test_a_crash_at_any_operation_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    file = tmp_path / "f"
    number, finished = 0, False
    while not finished:
        number += 1
        storage.write_bytes(file, b"old")
        with monkeypatch.context() as patch:
            seen = fail_at(patch, number, Crash())
            try:
                storage.write_bytes(file, b"new")
                finished = True
            except Crash:
                pass
        assert file.read_bytes() in (b"old", b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert file.read_bytes() == b"new"
    assert seen == ["write", "sync", "rename", "sync_folder"]


def test_a_crash_at_any_operation_of_a_folder_never_shows_half_of_it(tmp_path, monkeypatch):
    number, finished = 0, False
    while not finished:
        number += 1
        target = tmp_path / str(number) / "step"
        with monkeypatch.context() as patch:
            fail_at(patch, number, Crash())
            try:
                storage.commit_folder(target, {"a": b"1" * 100, "b": b"2"})
                finished = True
            except Crash:
                pass
        assert not target.exists() or checksums.find_folder_damage(target) is None
        storage.commit_folder(target, {"a": b"1" * 100, "b": b"2"})  # a later try is not in the way
        assert checksums.find_folder_damage(target) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest"])
def test_damage_to_a_folder_is_found(tmp_path, damage):
    folder = storage.commit_folder(tmp_path / "c", {"a": b"12345", "b": b"x"})
    assert checksums.find_folder_damage(folder) is None
    file = folder / ("files.json" if damage == "manifest" else "a")
    if damage == "missing":
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes(data[:-2] if damage in ("cut", "manifest") else data[:-1] + b"6")
    assert checksums.find_folder_damage(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_or_broken_disk_is_exit_code_5_and_keeps_the_old_file(tmp_path, monkeypatch, code):
    file = storage.write_text(tmp_path / "f", "old")
    fail_at(monkeypatch, 2, OSError(code, "x"))
    with pytest.raises(DiskError) as caught:
        storage.write_text(file, "new")
    assert caught.value.exit_code == 5
    assert str(file) in str(caught.value)
    assert file.read_text() == "old"


def test_equal_tensors_give_equal_bytes_whatever_the_order(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1], dtype=torch.uint8)}
    facts = {"z": "1", "format": "pt", "a": "ü"}
    first = safetensors_header.safetensors_bytes(tensors, facts)
    turned = dict(reversed(tensors.items())), dict(reversed(facts.items()))
    again = safetensors_header.safetensors_bytes(*turned)
    assert first == again
    file = storage.write_bytes(tmp_path / "t.safetensors", first)
    assert storage.read_safetensors_metadata(file) == facts
    back = storage.read_safetensors(file)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 a zip",
        b"\x80\x04\x95 a pickle",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (10**6).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_o',
    ],
)
def test_a_damaged_or_foreign_tensor_file_is_a_data_error(tmp_path, data):
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.safetensors"):
        storage.read_safetensors(file)


def test_json_lines_name_the_broken_line_and_forgive_a_torn_tail(tmp_path):
    file = tmp_path / "m.jsonl"
    storage.append_jsonl(file, {"step": 1})
    storage.append_jsonl(file, {"step": 2})
    with open(file, "ab") as handle:
        handle.write(b'{"step": 3')
    assert storage.read_jsonl(file, torn_tail=True) == [{"step": 1}, {"step": 2}]
    with pytest.raises(DataError, match="line 3"):
        storage.read_jsonl(file)
    file.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(DataError, match="line 2"):
        storage.read_jsonl(file)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert json.loads(storage.write_json(tmp_path / "y.json", {"b": 1, "a": 2}).read_text()) == {
        "a": 2,
        "b": 1,
    }


def test_a_lock_keeps_the_second_out_and_is_let_go(tmp_path):
    with storage.file_lock(tmp_path / "l") as first:
        assert first
        with storage.file_lock(tmp_path / "l") as second:
            assert not second
    with storage.file_lock(tmp_path / "l") as third:
        assert third


@pytest.mark.parametrize("code", [5, 32, 33])
def test_a_file_that_somebody_reads_is_replaced_when_it_is_closed(code, tmp_path, monkeypatch):
    """On Windows: access denied, and violations of sharing and of a lock."""
    target = storage.write_text(tmp_path / "run.json", "old")
    error = PermissionError(13, "used by another process")
    error.winerror = code
    failures = iter([error, error])
    plain = os.replace

    def replace(*paths: object) -> None:
        if failure := next(failures, None):
            raise failure
        plain(*paths)

    monkeypatch.setattr(os, "replace", replace)
    storage.write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
