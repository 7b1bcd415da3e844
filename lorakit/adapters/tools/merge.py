"""Adapters written into a base: a copy of the model's folder with changed weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lorakit.adapters.formats import BaseWeights, DeltaWeight, LoadedAdapter
from lorakit.adapters.tools.merge_tokens import EmbeddingMerger
from lorakit.core import output_paths, safetensors_header, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx")
_COPY_CHUNK_BYTES = 16 << 20  # bytes
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def merge_into_base(base: Path, adapters: Sequence[tuple[LoadedAdapter, float]], out: Path) -> int:
    """Write base + adapters into the new folder `out`, each weight in its own precision, shards and index as
    they are; returns how many weights were changed.

    Sums are made in float32 and rounded once. A weight at a time is in memory. Pickled copies of the weights
    are left out, for they would be unmerged. A new word that was trained with an adapter becomes one of the
    tokenizers and text encoders. Raises ConfigError where an adapter does not fit the base.
    """
    output_paths.check_output_path(out, "out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("this folder is not empty, so it is kept", where=str(out), remedy="name a new one")
    if out.resolve().is_relative_to(base.resolve()):
        raise ConfigError("the new folder must not lie within the base", where=str(out))
    changes = _plan_terms(BaseWeights(base), adapters)
    vocabulary = EmbeddingMerger(base, adapters)
    files = [file for file in sorted(base.rglob("*")) if _is_copied(file, base)]
    for file in track_progress(files, "merging", len(files)):
        target = out / file.relative_to(base)
        own = changes.get(file.parent.name, {}) if file.suffix == ".safetensors" else {}
        with open(file, "rb") as source, storage.open_atomic(target) as sink:
            _copy(source, sink) if not own else _merge_file(file, source, sink, own)
    vocabulary.write(out)
    return sum(len(own) for own in changes.values())


WeightedDeltas = list[tuple[DeltaWeight, float]]


def _plan_terms(
    weights: BaseWeights, adapters: Sequence[tuple[LoadedAdapter, float]]
) -> dict[str, dict[str, WeightedDeltas]]:
    """Component -> tensor name -> what is added to it; ConfigError before anything is written."""
    planned: dict[str, dict[str, WeightedDeltas]] = {}
    for adapter, strength in adapters:
        for module, change in adapter.changes.items():
            component, name = weights.key(module)
            shape = weights.shape(module)
            if change.shape[0] not in (0, shape[0]) or (
                0 not in change.shape and math.prod(change.shape) != math.prod(shape)
            ):
                raise ConfigError(
                    f"{module} changes {change.shape}, the base has {shape}", where=str(weights.folder)
                )
            planned.setdefault(component, {}).setdefault(name, []).append((change, strength))
    return planned


def _is_copied(file: Path, base: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(base).parts)
    return file.is_file() and not hidden and file.suffix not in _PICKLED


def _copy(source: BinaryIO, sink: BinaryIO) -> None:
    while piece := source.read(_COPY_CHUNK_BYTES):
        sink.write(piece)


def _merge_file(file: Path, source: BinaryIO, sink: BinaryIO, changes: Mapping[str, WeightedDeltas]) -> None:
    """The same file with other numbers: header, order and precision stay."""
    safetensors_header.check_safetensors(file)
    length = int.from_bytes(source.read(8), "little")
    text = source.read(length)
    sink.write(length.to_bytes(8, "little") + text)
    for name, entry in _tensors_by_offset(text):
        data = source.read(entry["data_offsets"][1] - entry["data_offsets"][0])
        sink.write(_merge_tensor(data, entry, changes[name], f"{file}, {name}") if name in changes else data)


def _tensors_by_offset(header: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    return iter(sorted(entries.items(), key=lambda item: item[1]["data_offsets"]))


def _merge_tensor(data: bytes, entry: dict[str, Any], terms: WeightedDeltas, where: str) -> bytes:
    if entry["dtype"] not in _DTYPES:
        raise ConfigError(
            f"weights in {entry['dtype']} cannot be merged into",
            where=where,
            remedy="use an unquantised base",
        )
    weight = torch.frombuffer(bytearray(data), dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    whole = weight.float()
    total = whole.clone()
    for change, strength in terms:
        total += strength * change.delta(whole).reshape(whole.shape)
    return bytes(total.to(weight.dtype).contiguous().view(torch.uint8).numpy().tobytes())
