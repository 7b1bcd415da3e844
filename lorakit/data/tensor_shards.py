"""Shards: safetensors files with many entries each, memory-mapped.

All entries of a shard have tensors of the same names, data types and numbers of axes. Each name is one flat
tensor with the values of all entries one after another, and a table of their shapes (`NAME:shape`). `keys`
and `checks` have the key and the hash of each entry, 32 bytes each. A shard appears complete and is never
changed.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core import checksums, safetensors_header, storage
from lorakit.core.errors import DataError

Tensors = dict[str, torch.Tensor]
SUFFIX = ".safetensors"
_KEYS, _CHECKS, _SHAPE = "keys", "checks", ":shape"
_KEY_BYTES = 32
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Part(NamedTuple):
    """One tensor of an entry without its values: its name, data type and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """An entry to write; `values` yields the bytes of each part when they are needed."""

    key: str
    check: bytes
    parts: tuple[Part, ...]
    values: Callable[[], list[memoryview]]


def make_entry(key: str, tensors: Mapping[str, torch.Tensor]) -> Entry:
    """Return an entry of contiguous tensors on the CPU."""
    ordered = sorted(tensors.items())
    parts = tuple(Part(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered)
    values = [_bytes_of(tensor) for _, tensor in ordered]
    return Entry(key, _check(key, parts, values), parts, lambda: values)


def signature(parts: Sequence[Part]) -> str:
    """Return a short name of what all entries of one shard share."""
    text = " ".join(f"{part.name} {part.dtype} {len(part.shape)}" for part in parts)
    return checksums.sha256_bytes(text.encode())[:6]


def shard_name(group: str, entries: Sequence[Entry]) -> str:
    """Return the name of the shard that holds these entries of a group: equal content has an equal name."""
    content = b"".join(bytes.fromhex(entry.key) + entry.check for entry in entries)
    return f"{group}-{signature(entries[0].parts)}-{checksums.sha256_bytes(content)[:16]}{SUFFIX}"


def group_of(path: Path) -> str:
    """Return the group and signature in the name of a shard: files with the same ones can be joined."""
    return path.name.rpartition("-")[0]


def write_shard(path: Path, entries: Sequence[Entry]) -> None:
    """Write entries of one signature, in this order, without a copy of all of them in memory."""
    names = [(part.name, part.dtype) for part in entries[0].parts]
    tables: dict[str, NDArray[Any]] = {
        _KEYS: np.frombuffer(b"".join(bytes.fromhex(e.key) for e in entries), np.uint8).reshape(-1, 32),
        _CHECKS: np.frombuffer(b"".join(e.check for e in entries), np.uint8).reshape(-1, 32),
    }
    for number, (name, _) in enumerate(names):
        shapes = [entry.parts[number].shape for entry in entries]
        tables[name + _SHAPE] = np.array(shapes, np.int64).reshape(len(entries), -1)
    rows: list[tuple[str, str, Sequence[int], int]] = [
        (n, "I64" if t.dtype == np.int64 else "U8", t.shape, t.nbytes) for n, t in tables.items()
    ]
    # larger elements first, so that every tensor is aligned
    order = sorted(range(len(names)), key=lambda number: -names[number][1].itemsize)
    for number in order:
        name, dtype = names[number]
        count = sum(math.prod(entry.parts[number].shape) for entry in entries)
        rows.append((name, _NAMES[dtype], (count,), count * dtype.itemsize))
    with storage.open_atomic(path) as file:
        file.write(safetensors_header.header_bytes(rows))
        for table in tables.values():
            file.write(table.tobytes())
        for number in order:
            for entry in entries:
                file.write(entry.values()[number])


class Shard:
    """One memory-mapped shard. Raises DataError for a file that is damaged or none, OSError without one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tensors = safetensors_header.read_header(path).tensors
        self.size = path.stat().st_size
        self._begin = self.size - max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        self._storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=self.size)
        whole: Any = torch.empty(0, dtype=torch.uint8)
        self._bytes: torch.Tensor = whole.set_(self._storage)
        try:
            self._read_tables(tensors)
        except (KeyError, ValueError, RuntimeError, IndexError, OverflowError) as error:
            raise DataError(f"not a shard of a cache: {error}", where=str(path)) from error

    def _read_tables(self, tensors: Mapping[str, dict[str, Any]]) -> None:
        spans = {name: (self._begin + e["data_offsets"][0], e) for name, e in tensors.items()}
        table = self._bytes.numpy()

        def read(name: str, dtype: Any) -> NDArray[Any]:
            start, entry = spans[name]
            shape = entry["shape"]
            size = math.prod(shape) * np.dtype(dtype).itemsize
            return table[start : start + size].view(dtype).reshape(shape).copy()

        keys, self._checks = read(_KEYS, np.uint8), read(_CHECKS, np.uint8)
        if keys.shape[1:] != (_KEY_BYTES,) or keys.shape != self._checks.shape:
            raise ValueError("keys without checks")
        self.keys = [key.tobytes().hex() for key in keys]
        self._parts: dict[str, tuple[torch.dtype, int, NDArray[Any], NDArray[Any]]] = {}
        for name in sorted(tensors.keys() - {_KEYS, _CHECKS}):
            if not name.endswith(_SHAPE):
                shapes = read(name + _SHAPE, np.int64)
                counts = np.prod(shapes, axis=1, dtype=np.int64)
                if len(shapes) != len(keys) or (shapes < 0).any():
                    raise ValueError(f"wrong shapes of {name}")
                if counts.sum() != spans[name][1]["shape"][0]:
                    raise ValueError(f"wrong shapes of {name}")
                offsets = np.concatenate([[0], np.cumsum(counts)])
                dtype = _DTYPES[str(spans[name][1]["dtype"])]
                self._parts[name] = dtype, spans[name][0], shapes, offsets

    def tensors(self, row: int) -> Tensors:
        """Return the tensors of an entry: views of the mapped file, read from disk when they are used."""
        entry = {}
        for name, (dtype, start, shapes, offsets) in self._parts.items():
            first, last = (start + int(offset) * dtype.itemsize for offset in offsets[row : row + 2])
            entry[name] = self._bytes[first:last].view(dtype).view(tuple(shapes[row].tolist()))
        return entry

    def entry(self, row: int) -> Entry:
        """Return an entry to write it into another shard."""
        check = self._checks[row].tobytes()
        return Entry(self.keys[row], check, self._entry_parts(row), functools.partial(self._values, row))

    def _values(self, row: int) -> list[memoryview]:
        return [_bytes_of(tensor) for _, tensor in sorted(self.tensors(row).items())]

    def _entry_parts(self, row: int) -> tuple[Part, ...]:
        return tuple(
            Part(name, dtype, tuple(shapes[row].tolist()))
            for name, (dtype, _, shapes, _) in self._parts.items()
        )

    def damaged_rows(self) -> list[int]:
        """Read the whole file, and return the entries that do not have their hash."""
        return [row for row, values in enumerate(self._read_rows()) if not self._is_intact(row, values)]

    def _is_intact(self, row: int, values: list[bytes]) -> bool:
        parts = self._entry_parts(row)
        return _check(self.keys[row], parts, values) == self._checks[row].tobytes()

    def _read_rows(self) -> Iterator[list[bytes]]:
        """Yield the bytes of each entry; read, not mapped, so that they do not count as memory."""
        with open(self.path, "rb") as file:
            for row in range(len(self.keys)):
                values = []
                for dtype, start, _, offsets in self._parts.values():
                    first, last = (int(offset) * dtype.itemsize for offset in offsets[row : row + 2])
                    file.seek(start + first)
                    values.append(file.read(last - first))
                yield values


def _check(key: str, parts: Sequence[Part], values: Sequence[bytes | memoryview]) -> bytes:
    """Return the hash of an entry: of its key, and of the name, type, shape and values of each tensor."""
    digest = hashlib.sha256(bytes.fromhex(key))
    for part, value in zip(parts, values, strict=True):
        digest.update(f"{part.name} {part.dtype} {part.shape}\n".encode())
        digest.update(value)
    return digest.digest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.contiguous().view(-1)
    values: Any = flat.view(torch.uint8).numpy() if tensor.numel() else b""
    return memoryview(values)


def safe_group(text: str) -> str:
    """Return a group as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.x-]", "_", text)
