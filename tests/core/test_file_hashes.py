"""Kept hashes: unchanged files are not read again, and no change stays unnoticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorakit.core import checksums, file_hashes, platform
from lorakit.core.file_hashes import HASHES_FILE, FileHashes
from lorakit.core.platform import FileStatus

SECOND = 1_000_000_000


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that moves the clock of the file system, as `FileHashes` sees it, forward."""
    real = file_hashes.file_system_clock
    seconds = [0.0]

    def clock(folder: str | os.PathLike[str]) -> FileStatus:
        status = real(folder)
        return status._replace(modified=status.modified + int(seconds[0] * SECOND))

    monkeypatch.setattr(file_hashes, "file_system_clock", clock)

    def move(by: float) -> None:
        seconds[0] += by

    return move


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a\nü.jpg"
    path.write_bytes(b"first")
    return path


def keep(folder: Path, *names: str) -> FileHashes:
    """Hash files as a command does, and return what the next command reads."""
    hashes = FileHashes.load(folder)
    hashes.start_reading()
    for name in names:
        hashes.sha256(name, folder / name)
    hashes.save(names)
    return FileHashes.load(folder)


def is_known(hashes: FileHashes, path: Path) -> bool:
    return hashes.known(path.name, platform.file_status(path)) is not None


def test_an_unchanged_file_is_not_read_again(
    file: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later(60)
    hashes = keep(file.parent, file.name)
    expected = checksums.sha256_file(file)
    monkeypatch.setattr(checksums, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    assert hashes.sha256(file.name, file) == expected


def rewrite(path: Path) -> None:
    path.write_bytes(b"other")


def rewrite_and_hide_the_time(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    status = path.stat()
    other.write_bytes(b"other")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


def append(path: Path) -> None:
    path.write_bytes(b"first and more")


@pytest.mark.parametrize("change", [rewrite, rewrite_and_hide_the_time, replace_by_another, append])
def test_a_changed_file_is_read_again(
    file: Path, later: Callable[[float], None], change: Callable[[Path], None]
) -> None:
    later(60)
    hashes = keep(file.parent, file.name)
    change(file)
    assert hashes.sha256(file.name, file) == checksums.sha256_file(file)


@pytest.mark.parametrize("age", [0, 1.9, 4.9])
def test_a_file_that_may_change_within_the_same_tick_is_not_kept(
    file: Path, later: Callable[[float], None], age: float
) -> None:
    later(age)
    assert not is_known(keep(file.parent, file.name), file)
    assert not (file.parent / HASHES_FILE).exists()
    later(6)
    assert is_known(keep(file.parent, file.name), file)


def test_a_change_within_one_tick_is_noticed(
    file: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file system stands still while a file is written, hashed and written again."""
    first = platform.file_status(file)
    monkeypatch.setattr(platform, "file_status", lambda path: first)
    later(1)  # within one tick of FAT
    hashes = keep(file.parent, file.name)
    file.write_bytes(b"other")
    assert hashes.sha256(file.name, file) == checksums.sha256_file(file)


def test_a_copied_folder_is_read_again(file: Path, later: Callable[[float], None], tmp_path: Path) -> None:
    later(60)
    keep(file.parent, file.name)
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)  # with all times of modification
    assert not is_known(FileHashes.load(copy), copy / file.name)


def test_a_moved_folder_is_not_read_again(file: Path, later: Callable[[float], None], tmp_path: Path) -> None:
    later(60)
    keep(file.parent, file.name)
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert is_known(FileHashes.load(moved), moved / file.name)


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_the_clock_of_another_file_system_is_not_trusted(
    file: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    real = platform.file_status
    monkeypatch.setattr(platform, "file_status", lambda path: real(path)._replace(device=-1))
    monkeypatch.setattr(file_hashes, "file_system_clock", lambda folder: real(file)._replace(device=0))
    later(seconds)
    assert not is_known(keep(file.parent, file.name), file)
    long_after = real(file).modified + file_hashes.MAX_CLOCK_ERROR_NS + SECOND
    clock = real(file)._replace(device=0, modified=long_after)
    monkeypatch.setattr(file_hashes, "file_system_clock", lambda folder: clock)
    assert is_known(keep(file.parent, file.name), file)


def test_a_time_in_the_future_is_not_kept(file: Path, later: Callable[[float], None]) -> None:
    later(60)
    ahead = file.stat().st_mtime_ns + 3600 * SECOND
    os.utime(file, ns=(ahead, ahead))
    assert not is_known(keep(file.parent, file.name), file)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: b"",
        lambda data: b"{}",
        lambda data: data.replace(b"hashes 1", b"hashes 9"),
        lambda data: data.replace(b" ", b"  "),
        lambda data: b"\xff" + data,
    ],
)
def test_a_damaged_file_of_hashes_holds_none(
    file: Path, later: Callable[[float], None], damage: Callable[[bytes], bytes]
) -> None:
    later(60)
    assert is_known(keep(file.parent, file.name), file)
    path = file.parent / HASHES_FILE
    path.write_bytes(damage(path.read_bytes()))
    assert not is_known(FileHashes.load(file.parent), file)
    assert is_known(keep(file.parent, file.name), file)


def test_files_that_are_gone_are_forgotten_and_nothing_is_written_without_a_change(
    file: Path, later: Callable[[float], None]
) -> None:
    (file.parent / "b.jpg").write_bytes(b"b")
    later(60)
    keep(file.parent, file.name, "b.jpg")
    path = file.parent / HASHES_FILE
    first = path.stat().st_ino
    keep(file.parent, file.name, "b.jpg")
    assert path.stat().st_ino == first
    keep(file.parent, "b.jpg")
    assert file.name.encode() not in path.read_bytes()


def test_a_command_that_writes_nothing_keeps_nothing(file: Path, later: Callable[[float], None]) -> None:
    later(60)
    hashes = FileHashes.load(file.parent)
    hashes.sha256(file.name, file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert not is_known(hashes, file)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileHashes.load(tmp_path).sha256("missing", tmp_path / "missing")
