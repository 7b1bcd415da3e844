"""Inspect an adapter: its content, and the consumers that would load it."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.formats import LoadedAdapter, LoraDelta, consumers, low_rank
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.read import find_adapter_file, read_adapter_file
from lorakit.adapters.textual_inversion import is_embedding_key
from lorakit.core import storage
from lorakit.core.errors import DataError

_MAX_METADATA_CHARS = 400  # characters of one metadata value
_NUMBER = re.compile(r"^(.*?\.\d+)(\..*)?$")


@dataclass(frozen=True)
class LoadCheck:
    """The answer to whether a consumer loads a file with its full effect, and the reason."""

    loads: bool
    reason: str


def inspect_adapter(adapter: LoadedAdapter) -> dict[str, Any]:
    """Return a description of an adapter as plain values.

    `nonfinite_tensors` lists the tensors with NaN or infinity; a block with one of them has no norm.
    """
    deltas = adapter.deltas.values()
    ranks = Counter(delta.rank for delta in deltas)
    scales = Counter(round(delta.scale, 6) for delta in deltas if isinstance(delta, LoraDelta))
    norms = {
        block: round(norm, 6) if math.isfinite(norm) else None for block, norm in _norms(adapter).items()
    }
    return {
        "path": str(adapter.path),
        "families": list(adapter.possible_families),
        "layout": adapter.layout,
        "notes": list(adapter.notes),
        "components": {part: len(adapter.component_deltas(part)) for part in adapter.components},
        "types": dict(Counter(delta.method for delta in deltas)),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "scales": {f"{scale:g}": count for scale, count in scales.most_common(8)},
        "num_parameters": adapter.num_parameters,
        "modules": dict(sorted(Counter(_module_type(module) for module in adapter.deltas).items())),
        "norms": norms,
        "finite": not adapter.nonfinite_tensors,
        "nonfinite_tensors": list(adapter.nonfinite_tensors),
        "consumers": consumer_support(adapter),
        "metadata": {key: value[:_MAX_METADATA_CHARS] for key, value in sorted(adapter.metadata.items())},
    }


def consumer_support(adapter: LoadedAdapter) -> dict[str, str]:
    """Return for each program whether it loads the file: yes, partly, no or unknown, and the reason."""
    if adapter.nonfinite_tensors:
        return dict.fromkeys(consumers.ALL_CONSUMERS, "no: it contains NaN or infinity")
    if adapter.path is None:
        return dict.fromkeys(consumers.ALL_CONSUMERS, "unknown: the adapter is not in a file")
    tensors, metadata = _read_tensors(adapter.path)
    support = {}
    for name in consumers.ALL_CONSUMERS:
        result = _load_answer(tensors, metadata, name, adapter.possible_families)
        support[name] = str(result) + ("" if result.loads else _export_remedy(adapter, name))
    return support


def check_consumer_loads(path: Path, consumer: str, family: str | None = None) -> LoadCheck:
    """Check whether a consumer loads a file of any origin with its full effect, without conversion.

    The answer comes from the consumer's own rules, so that it holds for files that lorakit itself cannot
    read. Raises ConfigError for a path without an adapter, NumericError for NaN or infinity.
    """
    tensors, metadata = _read_tensors(path)
    adapter: LoadedAdapter | None = None
    try:
        adapter = read_adapter_file(path, family)
        families = adapter.possible_families
    except DataError:  # not readable here; the consumer may read it
        families = (family,) if family else ()
    result = _load_answer(tensors, metadata, consumer, families)
    remedy = _export_remedy(adapter, consumer) if adapter and not result.loads else ""
    return LoadCheck(result.loads, str(result) + remedy)


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    file = find_adapter_file(path)
    return storage.read_safetensors(file), storage.read_safetensors_metadata(file)


def _load_answer(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], consumer: str, families: tuple[str, ...]
) -> consumers.LoadAnswer:
    adapter_tensors = {key: value for key, value in tensors.items() if not is_embedding_key(key)}
    candidates = families or consumers.fitting_families(adapter_tensors, consumer)
    return consumers.load_answer(adapter_tensors, consumer, candidates, metadata)


def _export_remedy(adapter: LoadedAdapter, consumer: str) -> str:
    """Return the hint that an export would load, if it would."""
    if consumer not in consumers.CONSUMERS or adapter.family is None:
        return ""
    if consumer not in consumers.supporting_consumers(adapter.family, adapter.deltas):
        return ""
    return f"; `lorakit export --for {consumer}` writes a file that it loads"


def _module_type(module: str) -> str:
    """Return the end of a module's name: `attn1.to_q` of `unet.down_blocks.0...attn1.to_q`."""
    parts = [part for part in module.split(".") if not part.isdigit()]
    return ".".join(parts[-2:])


def _norms(adapter: LoadedAdapter) -> dict[str, float]:
    """Return the Frobenius norm of the deltas by block, without methods that need the base model."""
    squares: dict[str, float] = {}
    for module, delta in adapter.deltas.items():
        if not delta.needs_base:
            block = _block(module)
            squares[block] = squares.get(block, 0.0) + delta_norm(delta) ** 2
    return {block: value**0.5 for block, value in sorted(squares.items())}


def delta_norm(delta: DeltaWeight) -> float:
    """Return the Frobenius norm of a delta weight that does not need the base model."""
    if isinstance(delta, LoraDelta):
        return low_rank.sum_norm([delta])
    return float(torch.linalg.vector_norm(delta.dense()))


def _block(module: str) -> str:
    match = _NUMBER.match(module)
    return match[1] if match else module
