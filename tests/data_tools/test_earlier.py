"""A repeated command reads only what may have changed, and everything on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_tools import prepare
from data_tools.prepare import PrepareOptions, check_dataset_folder, prepare_dataset
from lorakit import manifest
from lorakit.core import file_hashes, platform
from lorakit.core.errors import DataError
from lorakit.core.file_hashes import HASHES_FILE
from lorakit.data.items import check_unchanged
from lorakit.imaging import decode
from tests.data_tools.folders import fill, photo, written

OPTIONS = PrepareOptions(resolution=64, class_noun="dog", quiet=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder whose files are an hour old, by the clock of its file system."""
    real = file_hashes.file_system_clock
    later = 3600 * 10**9
    monkeypatch.setattr(
        file_hashes,
        "file_system_clock",
        lambda folder: real(folder)._replace(modified=real(folder).modified + later),
    )
    fill(tmp_path, {"a.png": "one", "sub/b.png": None, "c.png": None, "c.control.png": None}, size=(96, 64))
    prepare_dataset(tmp_path, OPTIONS)
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are read."""
    names: list[str] = []
    real = decode.read_file

    def read_file(path: str | os.PathLike[str], *limit: int) -> bytes:
        names.extend([Path(path).name] * (Path(path).suffix == ".png"))
        return real(path, *limit)

    monkeypatch.setattr(decode, "read_file", read_file)
    return names


def change(path: Path) -> None:
    """Change the content of a file, and neither its size nor its time of modification."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_only_changed_images_are_read_again(folder: Path, read: list[str]) -> None:
    before = written(folder)
    read.clear()
    prepare_dataset(folder, OPTIONS)
    assert read == []
    assert written(folder) == before
    photo(9, (96, 64)).save(folder / "sub/b.png")
    prepare_dataset(folder, PrepareOptions(resolution=64, class_noun="dog", quiet=True, report=False))
    assert set(read) == {"b.png"}


def test_every_image_is_read_on_request_or_without_hashes(folder: Path, read: list[str]) -> None:
    before = written(folder)
    everything = {"a.png", "b.png", "c.png"}
    read.clear()
    prepare_dataset(folder, PrepareOptions(resolution=64, class_noun="dog", quiet=True, verify=True))
    assert set(read) == everything
    (folder / HASHES_FILE).unlink()
    read.clear()
    prepare_dataset(folder, OPTIONS)
    assert set(read) == everything
    assert written(folder) == before


def test_without_times_of_change_a_hidden_change_is_found_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT and some network drives have no time of change."""
    real = platform.file_status

    def status(path: str | os.PathLike[str]) -> platform.FileStatus | None:
        known = real(path)
        return known and known._replace(changed=known.modified)

    monkeypatch.setattr(platform, "file_status", status)
    prepare_dataset(folder, OPTIONS)
    change(folder / "a.png")
    assert all(record.keep for record in check_dataset_folder(folder, OPTIONS).records)
    verified = check_dataset_folder(folder, PrepareOptions(resolution=64, quiet=True, verify=True))
    assert [record.file for record in verified.records if not record.keep] == ["a.png"]


def test_a_check_writes_nothing(folder: Path) -> None:
    (folder / HASHES_FILE).unlink()
    check_dataset_folder(folder, OPTIONS)
    assert not (folder / HASHES_FILE).exists()


def test_training_uses_the_same_hashes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = manifest.load_manifest(folder)
    with monkeypatch.context() as patch:
        patch.setattr("lorakit.core.checksums.sha256_file", lambda path: pytest.fail(f"{path} was read"))
        check_unchanged(folder, records)
    change(folder / "a.png")
    with pytest.raises(DataError, match="has changed") as caught:
        check_unchanged(folder, records)
    assert "a.png" in str(caught.value)


def test_an_edit_of_metadata_during_a_command_is_not_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub/b.txt").write_text("two")
    path = folder / manifest.METADATA_FILE
    edited = path.read_text().replace("one", "by hand")
    real = prepare.check.check_dataset
    monkeypatch.setattr(
        prepare.check, "check_dataset", lambda *args, **more: path.write_text(edited) and real(*args, **more)
    )
    with pytest.raises(DataError, match="contradict each other"):
        prepare_dataset(folder, OPTIONS)
    assert path.read_text() == edited
