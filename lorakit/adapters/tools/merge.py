"""Merge adapters into a copy of a base model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lorakit.adapters.formats import BaseWeights
from lorakit.adapters.tools import merge_single_file
from lorakit.adapters.tools.merge_plan import DeltasByTensor, add_deltas, plan_terms
from lorakit.adapters.tools.merge_tokens import EmbeddingMerger
from lorakit.adapters.tools.weighted import WeightedAdapter, WeightedDelta
from lorakit.core import output_paths, safetensors_header, storage
from lorakit.core.errors import ConfigError
from lorakit.core.folders import walk_files
from lorakit.core.progress import track_progress
from lorakit.models import single_file

_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx")
_COPY_CHUNK_BYTES = 16 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def merge_model(base: str, base_folder: Path, adapters: Sequence[WeightedAdapter], out: Path) -> int:
    """Merge into a new folder, or into one .safetensors file in the authors' layout, by the name of `out`.

    `base` is the base model as a command names it, `base_folder` its diffusers folder. Returns the number of
    changed weights.
    """
    if out.suffix.lower() != ".safetensors":
        return merge_into_base(base_folder, adapters, out)
    if single_file.is_single_file(base):
        return merge_single_file.merge_into_file(base, base_folder, adapters, out)
    return merge_single_file.merge_folder_into_file(base_folder, adapters, out)


def merge_into_base(base: Path, adapters: Sequence[WeightedAdapter], out: Path) -> int:
    """Write base model + adapters into the new folder `out`; return the number of changed weights.

    Each weight keeps its precision, shards and index stay the same. Sums are computed in float32 and rounded
    once; one weight at a time is in memory. Pickled copies of the weights are left out, because they would
    not be merged. A new token that was trained with an adapter is added to the tokenizers and text encoders.
    Raises ConfigError if an adapter does not fit the base model, or if `out` is not empty.
    """
    output_paths.check_output_path(out, "out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "this folder is not empty, so it is not replaced", where=str(out), remedy="give a new folder"
        )
    if out.resolve().is_relative_to(base.resolve()):
        raise ConfigError(
            "the new folder must not be inside the base model's folder",
            where=str(out),
            remedy="give another folder",
        )
    deltas = plan_terms(BaseWeights(base), adapters)
    embedding_merger = EmbeddingMerger(base, adapters)
    files = [file for file in sorted(walk_files(base)) if _is_copied(file, base)]
    for file in track_progress(files, "merging", len(files)):
        target = out / file.relative_to(base)
        file_deltas = deltas.get(file.parent.name, {}) if file.suffix == ".safetensors" else {}
        with open(file, "rb") as source, storage.open_atomic(target) as sink:
            _merge_file(file, source, sink, file_deltas) if file_deltas else _copy(source, sink)
    embedding_merger.write(out)
    return sum(len(component_deltas) for component_deltas in deltas.values())


def _is_copied(file: Path, base: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(base).parts)
    return file.is_file() and not is_hidden and file.suffix not in _PICKLED_SUFFIXES


def _copy(source: BinaryIO, sink: BinaryIO) -> None:
    while chunk := source.read(_COPY_CHUNK_BYTES):
        sink.write(chunk)


def _merge_file(file: Path, source: BinaryIO, sink: BinaryIO, deltas: DeltasByTensor) -> None:
    """Write the file with merged weights; header, order and precision stay the same."""
    entries = safetensors_header.read_header(file).tensors
    length = int.from_bytes(source.read(8), "little")
    sink.write(length.to_bytes(8, "little") + source.read(length))
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        data = source.read(entry["data_offsets"][1] - entry["data_offsets"][0])
        sink.write(_merge_tensor(data, entry, deltas[name], f"{file}, {name}") if name in deltas else data)


def _merge_tensor(data: bytes, entry: dict[str, Any], terms: Sequence[WeightedDelta], where: str) -> bytes:
    if entry["dtype"] not in _DTYPES:
        raise ConfigError(
            f"weights in {entry['dtype']} cannot be merged",
            where=where,
            remedy="use a base model that is not quantized",
        )
    weight = torch.frombuffer(bytearray(data), dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    merged = add_deltas(weight, terms)
    return bytes(merged.contiguous().view(torch.uint8).numpy().tobytes())
