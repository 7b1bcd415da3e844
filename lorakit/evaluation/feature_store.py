"""Features and scores of images on disk, one row for each image, in immutable files that hold many rows.

A file is named after the hash of its content and appears complete or not at all, so that a kill loses only
rows that were not written yet, and two processes can add rows at once. Many small files become one; the rows
of a judge and the cache as a whole are limited, and the oldest go first. Everything here can be deleted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core import checksums, storage
from lorakit.core.errors import DataError, DiskError, first_line
from lorakit.data import tensor_cache
from lorakit.models import base_model

Row = NDArray[np.float32]
MAX_FILES = 64  # of one judge; more are joined
MAX_JUDGE_BYTES = 256 << 20  # rows of one judge: 87,000 with 768 numbers
MAX_CACHE_BYTES = 2 << 30  # rows of all judges
_FOLDER, _SUFFIX, _KEY_BYTES = "evaluations", ".safetensors", 32
_VERSION = "2"


def open_store(judge: Mapping[str, Any]) -> FeatureStore:
    """Return the rows of a judge, which its settings identify."""
    key = tensor_cache.cache_key(judge=dict(judge), version=_VERSION)
    return _store(base_model.cache_folder() / _FOLDER / key[:32])


@functools.lru_cache(maxsize=16)
def _store(folder: Path) -> FeatureStore:
    return FeatureStore(folder)


class FeatureStore:
    """The rows of one judge by the digest of the image, or of the image and its texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[bytes, Row] = {}
        self._read: set[str] = set()
        self._has_made_room = False

    def get(self, digests: Sequence[str]) -> dict[str, Row]:
        """Return the rows that exist, by digest."""
        self._read_new_files()
        keys = {digest: _key(digest) for digest in digests}
        return {digest: self._rows[key] for digest, key in keys.items() if key in self._rows}

    def add(self, rows: Mapping[str, Row]) -> None:
        """Store rows; DiskError with a remedy if the cache cannot be written."""
        if not rows:
            return
        self._rows |= {_key(digest): row for digest, row in rows.items()}
        try:
            self._make_room()
            self._write({_key(digest): row for digest, row in rows.items()})
            if len(self._files()) > MAX_FILES:
                self._join_files()
        except (OSError, DiskError) as error:
            raise DiskError(
                f"the cache cannot be written: {first_line(error)}",
                where=str(self.folder),
                remedy="free space there, or set LORAKIT_CACHE to a folder on another disk, and try again",
            ) from error

    def _files(self) -> list[Path]:
        """Return the files of rows, oldest first."""
        entries = []
        for file in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process has joined it with others
                entries.append((file.stat().st_mtime_ns, file.name, file))
        return [file for _, _, file in sorted(entries)]

    def _read_new_files(self) -> None:
        for file in self._files():
            if file.name not in self._read:
                self._read.add(file.name)
                for key, row in _read_rows(file).items():
                    self._rows.setdefault(key, row)

    def _write(self, rows: Mapping[bytes, Row]) -> Path:
        keys = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, _KEY_BYTES)
        values = np.stack(list(rows.values())).astype(np.float32)
        name = _content_hash(keys, values)[:32] + _SUFFIX
        tensors = {"keys": torch.from_numpy(keys.copy()), "values": torch.from_numpy(values)}
        self._read.add(name)
        return storage.write_safetensors(self.folder / name, tensors)

    def _join_files(self) -> None:
        """Write the newest rows as one file, then remove those that it replaces."""
        self._read_new_files()
        files = self._files()
        rows: dict[bytes, Row] = {}
        for file in files:
            rows |= _read_rows(file)
        size = max(1, next(iter(self._rows.values())).nbytes + _KEY_BYTES)
        kept = list(rows.items())[-max(1, MAX_JUDGE_BYTES // size) :]
        joined = self._write(dict(kept))
        for file in files:
            if file != joined:
                storage.remove_file(file)
        storage.remove_partial_files(self.folder, owned="nobody")

    def _make_room(self) -> None:
        """Remove the judges that were used longest ago, once in a process, if the cache is too large."""
        if self._has_made_room or not self.folder.parent.is_dir():
            return
        self._has_made_room = True
        sizes: dict[Path, tuple[float, int]] = {}
        for folder in self.folder.parent.iterdir():
            with contextlib.suppress(OSError):
                files = [file.stat() for file in folder.iterdir()] if folder.is_dir() else []
                newest = max((file.st_mtime for file in files), default=0.0)
                sizes[folder] = (newest, sum(file.st_size for file in files))
        total = sum(size for _, size in sizes.values())
        for folder, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
            if total <= MAX_CACHE_BYTES:
                return
            if folder != self.folder and folder.is_dir():
                with contextlib.suppress(OSError, DiskError):
                    storage.remove_folder(folder)
                    total -= size


def _key(digest: str) -> bytes:
    return bytes.fromhex(checksums.sha256_bytes(digest.encode()))


def _content_hash(keys: NDArray[np.uint8], values: NDArray[np.float32]) -> str:
    return checksums.sha256_bytes(keys.tobytes() + str(values.shape).encode() + values.tobytes())


def _read_rows(file: Path) -> dict[bytes, Row]:
    """Return the rows of a file; none of a damaged one, which are computed again."""
    try:
        tensors = storage.read_safetensors(file)
        keys, values = tensors["keys"].numpy(), tensors["values"].numpy()
    except (OSError, DataError, KeyError, TypeError):
        return {}
    if keys.dtype != np.uint8 or values.dtype != np.float32 or keys.shape[1:] != (_KEY_BYTES,):
        return {}
    if len(keys) != len(values) or _content_hash(keys, values)[:32] != file.stem:
        return {}
    return dict(zip((key.tobytes() for key in keys), values, strict=True))
