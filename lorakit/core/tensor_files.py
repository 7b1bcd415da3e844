"""Tensors of safetensors files, read and written one at a time: more than memory holds passes through."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorakit.core import safetensors_header, storage
from lorakit.core.errors import DataError

if TYPE_CHECKING:
    import torch

_MAX_MAPPED_BYTES = 64 << 20
"""Mapped pages count as memory of the process until the file is closed: it is, after as many bytes."""


class TensorFiles:
    """The tensors of several files by name, such as the parts of one network."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Read and check the headers. Raises DataError for a damaged or hostile file."""
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._open: tuple[Path, Any] | None = None
        self._mapped_bytes = 0
        for file in files:
            entries = safetensors_header.read_header(file).tensors
            in_order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
            self._file_of |= dict.fromkeys(in_order, file)
            self._shapes |= {name: tuple(entry["shape"]) for name, entry in entries.items()}

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in their order in the files."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into memory of its own. Raises DataError if it cannot be read."""
        from safetensors import SafetensorError, safe_open

        file = self._file_of[name]
        try:
            if self._open is None or self._open[0] != file or self._mapped_bytes > _MAX_MAPPED_BYTES:
                self._open, self._mapped_bytes = (file, safe_open(file, framework="pt")), 0
            tensor: torch.Tensor = self._open[1].get_tensor(name).clone()
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise DataError(f"damaged safetensors file: {error}", where=str(file)) from error
        self._mapped_bytes += tensor.nbytes
        return tensor


class TensorLayout(NamedTuple):
    """Shape and type of a tensor that is going to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_in_parts(
    path: str | os.PathLike[str],
    layouts: Mapping[str, TensorLayout],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str],
) -> Path:
    """Write a safetensors file atomically from tensors that come one at a time, in any order.

    Types with more bytes come first in the file, so that all tensors can be used from a memory map. Raises
    ValueError if a tensor is missing or differs from its layout, DiskError if the file cannot be written.
    """
    import torch

    names = sorted(layouts, key=lambda name: (-layouts[name].dtype.itemsize, name))
    header, offsets = _header([(name, layouts[name]) for name in names], metadata)
    missing = set(names)
    with storage.open_atomic(path) as file:
        file.write(header)
        for name, tensor in tensors:
            if TensorLayout(tuple(tensor.shape), tensor.dtype) != layouts[name]:
                raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, not {layouts[name]}")
            file.seek(offsets[name])
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(flat.numpy().data)
            missing.discard(name)
        if missing:
            raise ValueError(f"{len(missing)} tensors are missing, first {min(missing)}")
    return Path(path)


def _header(
    layouts: Sequence[tuple[str, TensorLayout]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the bytes before the first tensor, and the place of each tensor in the file."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name, layout in layouts:
        end = position + layout.num_bytes
        entries[name] = {
            "dtype": _type_name(layout.dtype),
            "shape": list(layout.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + entries[name]["data_offsets"][0] for name, _ in layouts}


def _type_name(dtype: torch.dtype) -> str:
    import torch

    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    return (names | {torch.uint8: "U8", torch.int8: "I8", torch.int64: "I64"})[dtype]
