"""Safetensors files: checks of a header before a parser allocates memory for it, and canonical bytes.

The format (https://github.com/huggingface/safetensors#format): eight bytes of length, a JSON object of names
to dtype, shape and offsets, then the bytes of the tensors without a gap. The library's own parser accepts
duplicate names and any number of tensors.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from lorakit.core import input_files
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 8 << 20  # bytes
MAX_TENSORS = 30_000  # in one file
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 48  # in one tensor
_BITS_PER_DTYPE = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
}
_BITS_PER_DTYPE |= {"BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64}
_BITS_PER_DTYPE |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}


class Header(NamedTuple):
    """A checked header: the entry (dtype, shape, data_offsets) of each tensor by name, and the metadata."""

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]


def check_safetensors(path: str | os.PathLike[str]) -> dict[str, str]:
    """Check the header of a file and return its metadata; see `read_header`."""
    return read_header(path).metadata


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a file. Raises DataError for a damaged or hostile file.

    Only the header is read. Each tensor must have bytes of its own, as many as its shape needs, and together
    they must fill the rest of the file.
    """
    try:
        with input_files.open_regular(path) as file:
            return _checked_header(file, os.fstat(file.fileno()).st_size, str(path))
    except input_files.NotAFileError as error:
        raise _damaged(f"it is {error.strerror}", str(path)) from error


def parse_header(data: bytes, where: str) -> Header:
    """Check the header of the bytes of a file; see `read_header`."""
    return _checked_header(io.BytesIO(data), len(data), where)


def _checked_header(file: BinaryIO, size: int, where: str) -> Header:
    try:
        text, rest = _header_text(file, size)
        tree = parse_json(text, where)
        metadata = tree.pop("__metadata__", {})
        _check_count(len(tree))  # again: JSON escapes can hide a key from the first count
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata must be text")
        _check_spans([_tensor_span(name, entry) for name, entry in tree.items()], rest)
    except DataError as error:
        raise _damaged(error.message, where) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(str(error), where) from error
    return Header(tree, metadata)


def _damaged(problem: str, where: str) -> DataError:
    remedy = "use an intact .safetensors file; pickled .ckpt/.bin/.pt files are never opened"
    return DataError(f"not a safetensors file, or a damaged one: {problem}", where=where, remedy=remedy)


def _header_text(file: BinaryIO, size: int) -> tuple[bytes, int]:
    """Return the text of the header and the number of bytes after it."""
    length = int.from_bytes(file.read(8), "little")
    if size < 10:
        raise ValueError("the file is too short")
    if file.read(1) != b"{":
        raise ValueError("it has no header")
    if length > size - 8:
        raise ValueError("it ends inside its header")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length >> 20} MiB, at most {MAX_HEADER_BYTES >> 20} are read")
    text = b"{" + file.read(length - 1)
    _check_count(text.count(b'"data_offsets"'))
    return text, size - 8 - length


def _check_count(count: int) -> None:
    if count > MAX_TENSORS:
        raise ValueError(f"it has {count} tensors, at most {MAX_TENSORS} are read")


def _tensor_span(name: str, entry: dict[str, Any]) -> tuple[int, int, str]:
    """Return (begin, end, name) of the bytes of a tensor; they must fit its shape and dtype."""
    if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
        raise ValueError(f"{name[:80]!r} must have dtype, shape and data_offsets, and nothing else")
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    if (
        not whole
        or len(shape) > MAX_DIMENSIONS
        or math.prod(max(1, number) for number in shape) > MAX_ELEMENTS
    ):
        raise ValueError(f"{name[:80]!r} has an impossible shape or offset")
    if entry["dtype"] not in _BITS_PER_DTYPE:
        raise ValueError(f"{name[:80]!r} has the unknown dtype {str(entry['dtype'])[:20]!r}")
    if math.prod(shape) * _BITS_PER_DTYPE[entry["dtype"]] != 8 * (end - begin):
        raise ValueError(f"{name[:80]!r} has {end - begin} bytes, which does not match its shape")
    return begin, end, name


def _check_spans(places: list[tuple[int, int, str]], rest: int) -> None:
    position = 0
    for begin, end, name in sorted(places):
        if begin != position:
            raise ValueError(f"{name[:80]!r} overlaps another tensor, or leaves a gap")
        position = end
    if position != rest:
        raise ValueError(f"{rest} bytes of tensors, but the header names {position}")


def header_bytes(rows: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """Return the beginning of a file, whose tensors (name, dtype, shape, bytes) follow in this order."""
    tree, position = {}, 0
    for name, dtype, shape, size in rows:
        tree[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    return _header_with_length(tree)


def _header_with_length(tree: Mapping[str, Any]) -> bytes:
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def safetensors_bytes(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Serialize tensors (moved to the CPU) as safetensors with a canonical header.

    The library writes metadata in hash order, which differs between processes; the header is therefore
    rewritten with sorted keys. https://github.com/huggingface/safetensors#format
    """
    from safetensors.torch import save

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    raw = save(plain)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    ordered: dict[str, Any] = {}
    if metadata:
        ordered["__metadata__"] = dict(sorted(metadata.items()))
    ordered |= dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    return _header_with_length(ordered) + raw[8 + length :]
