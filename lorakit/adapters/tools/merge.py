"""Merge adapters into a copy of a base model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lorakit.adapters import base_fit
from lorakit.adapters.formats import BaseWeights, LoadedAdapter
from lorakit.adapters.tools.merge_tokens import EmbeddingMerger
from lorakit.adapters.tools.weighted import WeightedAdapter, WeightedDelta
from lorakit.core import output_paths, safetensors_header, storage
from lorakit.core.errors import ConfigError, first_line
from lorakit.core.folders import walk_files
from lorakit.core.progress import track_progress
from lorakit.models import families
from lorakit.models.base_model import MODEL_INDEX

_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx")
_COPY_CHUNK_BYTES = 16 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_DeltasByTensor = Mapping[str, Sequence[WeightedDelta]]


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
    deltas = _plan_terms(BaseWeights(base), adapters)
    embedding_merger = EmbeddingMerger(base, adapters)
    files = [file for file in sorted(walk_files(base)) if _is_copied(file, base)]
    for file in track_progress(files, "merging", len(files)):
        target = out / file.relative_to(base)
        file_deltas = deltas.get(file.parent.name, {}) if file.suffix == ".safetensors" else {}
        with open(file, "rb") as source, storage.open_atomic(target) as sink:
            _merge_file(file, source, sink, file_deltas) if file_deltas else _copy(source, sink)
    embedding_merger.write(out)
    return sum(len(component_deltas) for component_deltas in deltas.values())


def _plan_terms(
    base_weights: BaseWeights, adapters: Sequence[WeightedAdapter]
) -> dict[str, dict[str, list[WeightedDelta]]]:
    """Return component -> tensor name -> deltas to add; ConfigError before anything is written."""
    planned: dict[str, dict[str, list[WeightedDelta]]] = {}
    for weighted in adapters:
        adapter, wrong = _for_base(weighted.adapter, base_weights.folder), []
        for module, delta in adapter.deltas.items():
            try:
                key, shape = base_weights.tensor_key(module), base_weights.shape(module)
            except ConfigError as error:
                wrong.append(first_line(error))
                continue
            if not base_fit.shapes_match(delta.shape, shape):
                wrong.append(f"{module} has the shape {delta.shape}, the base model's weight {shape}")
                continue
            terms = planned.setdefault(key.component, {}).setdefault(key.tensor, [])
            terms.append(WeightedDelta(delta, weighted.strength))
        if wrong:
            raise ConfigError(
                f"the adapter does not fit this base model: {len(wrong)} of {len(adapter.deltas)} modules"
                f" differ, first {'; '.join(wrong[:5])}",
                where=f"{adapter.path or 'adapter'}, {base_weights.folder}",
                remedy="give the base model that it was trained on, or a fine-tune of that model",
            )
    return planned


def _for_base(adapter: LoadedAdapter, base: Path) -> LoadedAdapter:
    """Return an adapter with the component names of the base model; ConfigError for another family."""
    if (base / MODEL_INDEX).is_file():
        family = families.family_for_adapter(base, adapter.family)
        base_fit.require_related(adapter, family, adapter.path or base)
    return base_fit.assign_expert(adapter, {folder.name for folder in base.iterdir() if folder.is_dir()})


def _is_copied(file: Path, base: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(base).parts)
    return file.is_file() and not is_hidden and file.suffix not in _PICKLED_SUFFIXES


def _copy(source: BinaryIO, sink: BinaryIO) -> None:
    while chunk := source.read(_COPY_CHUNK_BYTES):
        sink.write(chunk)


def _merge_file(file: Path, source: BinaryIO, sink: BinaryIO, deltas: _DeltasByTensor) -> None:
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
    base = weight.float()
    total = base.clone()
    for term in terms:
        total += term.strength * term.delta.dense(base).reshape(base.shape)
    return bytes(total.to(weight.dtype).contiguous().view(torch.uint8).numpy().tobytes())
