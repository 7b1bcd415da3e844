"""A minimal ONNX file, written byte by byte: a test needs no package that exports models.

The encoding is that of protocol buffers: a field's number and kind, then its value.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

FLOAT = 1
_IR_VERSION, _OPSET = 8, 13


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def node(operator: str, inputs: Sequence[str], output: str, **integers: int) -> bytes:
    """Return a NodeProto with integer attributes."""
    parts = [_bytes(1, name) for name in inputs] + [_bytes(2, output), _bytes(4, operator)]
    for name, value in integers.items():
        parts.append(_bytes(5, _bytes(1, name) + _number(3, value) + _number(20, 2)))
    return b"".join(parts)


def tensor(
    name: str, dims: Sequence[int], values: Sequence[float] | Sequence[int], kind: int = FLOAT
) -> bytes:
    """Return a TensorProto."""
    packed = struct.pack(f"<{len(values)}{'f' if kind == FLOAT else 'q'}", *values)
    return b"".join(
        [*(_number(1, dim) for dim in dims), _number(2, kind), _bytes(8, name), _bytes(9, packed)]
    )


def _value(name: str, dims: Sequence[int | str]) -> bytes:
    shape = b"".join(_bytes(1, _number(1, dim) if isinstance(dim, int) else _bytes(2, dim)) for dim in dims)
    kind = _number(1, FLOAT) + _bytes(2, shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, kind))


def write_onnx(
    file: Path,
    nodes: Sequence[bytes],
    tensors: Sequence[bytes],
    input_shape: Sequence[int | str],
    output_shape: Sequence[int | str],
) -> Path:
    """Write a model from the input "x" to the output "y"."""
    graph = b"".join(
        [
            *(_bytes(1, one) for one in nodes),
            _bytes(2, "graph"),
            *(_bytes(5, one) for one in tensors),
            _bytes(11, _value("x", input_shape)),
            _bytes(12, _value("y", output_shape)),
        ]
    )
    opset = _bytes(1, "") + _number(2, _OPSET)
    file.write_bytes(_number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, opset))
    return file


def mean_color_model(file: Path, side: int | str = "side") -> Path:
    """Write a model whose output (1, 3) is the mean of each channel."""
    nodes = [node("GlobalAveragePool", ["x"], "pooled"), node("Flatten", ["pooled"], "y", axis=1)]
    return write_onnx(file, nodes, [], [1, 3, side, side], [1, 3])


def redness_model(file: Path, side: int | str = "side", gain: float = 8.0) -> Path:
    """Write a model whose output (1, 1, H, W) is the logit that a pixel is red: `gain` x (red - green)."""
    weights = tensor("w", [1, 3, 1, 1], [gain, -gain, 0.0])
    return write_onnx(
        file, [node("Conv", ["x", "w"], "y")], [weights], [1, 3, side, side], [1, 1, side, side]
    )
