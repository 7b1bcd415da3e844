"""The only module that writes files.

A file appears complete or not at all: temporary file, fsync, rename, fsync of the folder. A folder of files
(a checkpoint) appears the same way, with a list of sizes and hashes written last. Every file-system operation
calls `io_hook`, where tests inject crashes and full disks.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorakit.core import checksums, file_locks, input_files, platform, safetensors_header, strict_json
from lorakit.core.errors import DataError, DiskError
from lorakit.core.progress import print_line
from lorakit.core.strict_json import parse_json

if TYPE_CHECKING:
    import torch
    from PIL import Image

_PARTIAL = ".partial-"
LOCK = ".lock"
_ABANDONED_AFTER = 3600.0  # seconds; a process id says nothing about writers on other machines
MAX_JSONL_BYTES, MAX_JSONL_VALUES = 256 << 20, 20_000_000  # of one JSONL file

# Tests replace this with a function that raises or kills at the n-th call: (operation name, path).
io_hook: Callable[[str, Path], None] = lambda name, path: None  # noqa: E731


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one readable DiskError."""
    try:
        yield
    except OSError as error:
        remedy = "free space or choose another output folder, then run the same command again"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "raise the limit of open files (ulimit -n), then run the same command again"
        raise DiskError(
            f"cannot write: {os.strerror(error.errno or 0)}", where=str(path), remedy=remedy
        ) from error


def _sync_folder(folder: Path) -> None:
    io_hook("sync_folder", folder)
    platform.sync_folder(folder)


def _write_synced(path: Path, data: bytes) -> None:
    io_hook("write", path)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        io_hook("sync", path)
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    platform.retry_while_open(lambda: os.replace(source, target))


def make_dir(path: str | os.PathLike[str]) -> Path:
    """Create a folder with its parents, durably; do nothing if it exists."""
    folder = Path(path)
    if not folder.is_dir():
        make_dir(folder.parent)
        with _disk_errors(folder):
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)  # a power cut could lose the parents of a checkpoint
    return folder


def is_internal_file(path: Path) -> bool:
    """Return True for a file of this module: an incomplete write after a crash, or a lock."""
    return path.name.startswith((_PARTIAL, LOCK))


def partial_path(folder: Path) -> Path:
    """Return a new name for an incomplete file, which `remove_partial_files` removes after a crash."""
    # a process id alone is not unique: containers that share a cache have equal ones
    return folder / f"{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}"


def remove_partial_files(folder: str | os.PathLike[str], *, owned: str) -> None:
    """Remove incomplete writes of earlier processes below a folder.

    Only this process writes into the subfolder `owned`, which it has locked. Elsewhere others may be writing:
    there, a file is removed when its writer has ended and it is older than `_ABANDONED_AFTER`.
    """
    root = Path(folder)
    for entry in list(root.rglob(f"{_PARTIAL}*")):
        with contextlib.suppress(OSError):
            if owned in entry.relative_to(root).parts or _is_abandoned(entry):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _is_abandoned(partial: Path) -> bool:
    """Return True if nobody writes a partial file any more; its name starts with the writer's process id."""
    import psutil

    pid = partial.name.removeprefix(_PARTIAL).partition("-")[0]
    if pid.isdigit() and psutil.pid_exists(int(pid)):
        return False
    return time.time() - partial.stat().st_mtime > _ABANDONED_AFTER


def write_bytes(path: str | os.PathLike[str], data: bytes, *, private: bool = False) -> Path:
    """Write `data` atomically (readers see the old file or the new one), for the user only if `private`."""
    target = Path(path)
    make_dir(target.parent)
    partial = partial_path(target.parent)
    with _disk_errors(target):
        try:
            if private:
                partial.touch(0o600, exist_ok=False)
            _write_synced(partial, data)
            io_hook("rename", target)
            _replace(partial, target)
            _sync_folder(target.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
    return target


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing in parts; it appears complete when the block ends, or not at all."""
    target = Path(path)
    make_dir(target.parent)
    partial = partial_path(target.parent)
    with _disk_errors(target):
        try:
            io_hook("write", partial)
            with open(partial, "wb") as file:
                yield file
                file.flush()
                io_hook("sync", partial)
                os.fsync(file.fileno())
            io_hook("rename", target)
            _replace(partial, target)
            _sync_folder(target.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write many small files atomically, with one sync for all of them: ten times faster than one each."""
    for folder in {path.parent for path in files}:
        make_dir(folder)
    partials = {path: partial_path(path.parent) for path in files}
    try:
        for path, data in files.items():
            with _disk_errors(path):
                io_hook("write", partials[path])
                partials[path].write_bytes(data)
        io_hook("sync", Path())
        platform.sync_files(list(partials.values()))
        for path, partial in partials.items():
            with _disk_errors(path):
                io_hook("rename", path)
                _replace(partial, path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode("utf-8"))


def dump_json(value: Any) -> str:
    """Return canonical JSON: equal values give equal bytes. Refuses NaN, which JSON does not have."""
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write a JSON file atomically, keys sorted."""
    return write_text(path, dump_json(value))


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object per line, atomically."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Append one line in one write call, so that a crash damages at most the last line."""
    append_text(path, json.dumps(row, ensure_ascii=False) + "\n")


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append text to a log."""
    with open_append(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def open_append(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for appending bytes."""
    target = Path(path)
    make_dir(target.parent)
    with _disk_errors(target):
        io_hook("append", target)
        with open(target, "ab") as file:
            yield file


def fsync_file(path: str | os.PathLike[str]) -> None:
    """Make appended bytes durable; do nothing if the file is missing."""
    target = Path(path)
    if target.exists():
        with _disk_errors(target), open(target, "ab") as file:
            io_hook("sync", target)
            os.fsync(file.fileno())
            _sync_folder(target.parent)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write tensors atomically, with sorted names and metadata: equal content gives equal bytes."""
    return write_bytes(path, safetensors_header.safetensors_bytes(tensors, metadata))


def save_image(path: str | os.PathLike[str], image: Image.Image, **options: Any) -> Path:
    """Encode an image by the extension of the path and write it atomically; `options` go to Pillow's save."""
    buffer = io.BytesIO()
    suffix = Path(path).suffix.lower().lstrip(".")
    image.save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return write_bytes(path, buffer.getvalue())


def copy_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Copy a file atomically."""
    return write_bytes(path, Path(source).read_bytes())


def read_json(path: str | os.PathLike[str], *, allow_infinity: bool = False) -> Any:
    """Read a JSON file; see `parse_json`. Raises DataError, with file and line, for invalid JSON."""
    data = input_files.read_regular(path, strict_json.MAX_BYTES)
    return parse_json(data, str(path), allow_infinity=allow_infinity)


def read_jsonl(path: str | os.PathLike[str], *, torn_tail: bool = False) -> list[dict[str, Any]]:
    """Read one JSON object per line.

    `torn_tail` accepts the damage of a crash at the end of an appended file: a truncated last line, or zeros
    where lines never reached the disk, and everything after them.
    """
    rows: list[dict[str, Any]] = []
    num_values = 0
    for number, line in enumerate(io.BytesIO(input_files.read_regular(path, MAX_JSONL_BYTES)), 1):
        num_values += strict_json.count_values(line)
        if num_values > MAX_JSONL_VALUES:
            message = f"more than {MAX_JSONL_VALUES // 1_000_000} million values"
            raise DataError(message, where=f"{path}, line {number}", remedy="split the file")
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise DataError("a line must hold one JSON object", where=f"{path}, line {number}")
        except DataError:
            if torn_tail and (not line.endswith(b"\n") or b"\0" in line):
                break
            raise
        rows.append(row)
    return rows


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read all tensors to the CPU.

    Raises DataError for a damaged or hostile file. One that has another hash than the list beside it records
    is read, with a warning: it may be damaged, or somebody has replaced it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    safetensors_header.check_safetensors(path)
    if checksums.is_changed(path):
        print_line(f"warning: {path} is not the file that was written: it is damaged, or was replaced")
    try:
        return load_file(path)
    except (SafetensorError, RuntimeError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise DataError(f"damaged safetensors file: {error}", where=str(path)) from error


def read_safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of the header without reading the tensors."""
    return safetensors_header.check_safetensors(path)


def commit_folder(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> Path:
    """Create `folder` with `files` in one rename; the list of sizes and hashes is written last.

    An existing folder of the same name that contains exactly these files is kept, so that it is never
    missing; any other is replaced after the new one is complete on disk.
    """
    target = Path(folder)
    make_dir(target.parent)
    manifest = {n: {"size": len(data), "sha256": checksums.sha256_bytes(data)} for n, data in files.items()}
    listing = dump_json(manifest).encode("utf-8")
    if (
        checksums.find_folder_damage(target) is None
        and (target / checksums.CHECKSUMS_FILE).read_bytes() == listing
    ):
        return target
    partial = target.with_name(f"{_PARTIAL}{target.name}")
    with _disk_errors(target):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        for name, data in sorted(files.items()):
            _write_synced(partial / name, data)
        _write_synced(partial / checksums.CHECKSUMS_FILE, listing)
        _sync_folder(partial)
        if target.exists():
            remove_folder(target)
        io_hook("rename", target)
        _replace(partial, target)
        _sync_folder(target.parent)
    return target


def record_hashes(folder: str | os.PathLike[str], files: Iterable[Path]) -> None:
    """Write the list of sizes and hashes of files below a folder; see `commit_folder`."""
    root = Path(folder)
    listing = {
        file.relative_to(root).as_posix(): {
            "size": file.stat().st_size,
            "sha256": checksums.sha256_file(file),
        }
        for file in files
    }
    write_json(root / checksums.CHECKSUMS_FILE, listing)


def remove_folder(folder: str | os.PathLike[str]) -> None:
    """Remove a folder that lorakit created; it is renamed first, so that a crash leaves no partial folder."""
    target = Path(folder)
    doomed = target.with_name(f"{_PARTIAL}old-{target.name}")
    with _disk_errors(target):
        if doomed.exists():
            shutil.rmtree(doomed)
        io_hook("rename", doomed)
        _replace(target, doomed)
        io_hook("remove", doomed)
        platform.retry_while_open(lambda: shutil.rmtree(doomed))


def rename_folder(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Rename a folder durably; `path` must not exist."""
    source, target = Path(folder), Path(path)
    with _disk_errors(target):
        io_hook("rename", target)
        platform.retry_while_open(lambda: os.rename(source, target))
        _sync_folder(target.parent)


def remove_file(path: str | os.PathLike[str]) -> None:
    """Remove a file that lorakit created; do nothing if it is missing."""
    target = Path(path)
    if target.exists():
        with _disk_errors(target):
            io_hook("remove", target)
            target.unlink(missing_ok=True)


@contextlib.contextmanager
def file_lock(
    path: str | os.PathLike[str], *, wait_seconds: float = 0.0, on_wait: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Hold an exclusive lock; yields False if another process still holds it after `wait_seconds`.

    The lock is released when the process ends, however it ends. `on_wait` is called once before waiting.
    """
    make_dir(Path(path).parent)
    with _disk_errors(Path(path)):
        lock = file_locks.wait_for_lock(Path(path), wait_seconds, on_wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()
