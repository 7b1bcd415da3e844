"""Hostile files."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def pickled(canary: Path, *, archive: bool) -> bytes:
    """Return a checkpoint with a payload, as torch.save writes it (a zip) or as a bare pickle."""
    tree = {"state_dict": {"a": torch.zeros(2)}, "evil": Payload(canary)}
    if not archive:
        return pickle.dumps({"evil": tree["evil"]})
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """Return the entry of a tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensor_file(header: dict[str, Any] | str, data: bytes = bytes(64)) -> bytes:
    """Return a safetensors file with any header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def archive() -> bytes:
    """Return a small zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x04.")
    return buffer.getvalue()


WHOLE = entry([16], 0, 64)
_TWICE = json.dumps({"a": WHOLE})[:-1] + ", " + json.dumps({"a": WHOLE})[1:]
_MANY = {f"t{i}": entry([], 0, 0, "U8") for i in range(100_000)}

# Defect -> (bytes, part of the error message)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "short": (b"{}", "too short"),
    "header longer than the file": ((1 << 62).to_bytes(8, "little") + b"{}", "ends inside its header"),
    "header of 9 MiB": (tensor_file('{"a":"' + "x" * (9 << 20) + '"}'), "its header has 9 MiB"),
    "100,000 tensors": (tensor_file(_MANY, b""), "100000 tensors, at most 30000"),
    "overlapping": (tensor_file({"a": WHOLE, "b": WHOLE}), "overlaps"),
    "partly overlapping": (tensor_file({"a": entry([12], 0, 48), "b": entry([8], 32, 64)}), "overlaps"),
    "gap": (tensor_file({"a": entry([8], 32, 64)}), "leaves a gap"),
    "bytes left over": (tensor_file({"a": WHOLE}, bytes(65)), "65 bytes of tensors, but the header names 64"),
    "cut": (tensor_file({"a": WHOLE}, bytes(60)), "60 bytes of tensors, but the header names 64"),
    "duplicate key": (tensor_file(_TWICE), "'a' occurs twice"),
    "negative shape": (tensor_file({"a": entry([-16], 0, 64)}), "impossible shape"),
    "two negatives": (tensor_file({"a": entry([-4, -4], 0, 64)}), "impossible shape"),
    "overflow": (tensor_file({"a": entry([2**62, 4], 0, 64)}), "impossible shape"),
    "overflow behind zero": (tensor_file({"a": entry([0, 2**62, 2**62], 0, 0)}, b""), "impossible shape"),
    "fraction": (tensor_file({"a": entry([16.0], 0, 64)}), "impossible shape"),
    "truth value": (tensor_file({"a": entry([True, 16], 0, 64)}), "impossible shape"),
    "1,000 dimensions": (tensor_file({"a": entry([1] * 1000, 0, 4)}, bytes(4)), "impossible shape"),
    "backwards": (tensor_file({"a": entry([0], 64, 0)}), "does not match its shape"),
    "wrong size": (tensor_file({"a": entry([15], 0, 64)}), "does not match its shape"),
    "unknown dtype": (tensor_file({"a": entry([16], 0, 64, "F33")}), "unknown dtype"),
    "no offsets": (tensor_file({"a": {"dtype": "F32", "shape": [16]}}), "data_offsets"),
    "metadata that is not text": (tensor_file({"a": WHOLE, "__metadata__": {"x": 1}}), "must be text"),
    "metadata that is a list": (
        tensor_file({"a": WHOLE, "__metadata__": [1]}),
        "not a safetensors file",
    ),
    "deep": (tensor_file('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "inside each other"),
    "not JSON": (tensor_file("{'a': 1}"), "not a safetensors file"),
    "not UTF-8": ((4).to_bytes(8, "little") + b'{"\xff}' + bytes(9), "not a safetensors file"),
    "zip behind it": (tensor_file({"a": WHOLE}) + archive(), "bytes of tensors, but the header names 64"),
    "zip": (archive(), "it has no header"),
}
