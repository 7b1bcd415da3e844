"""Inspect an adapter: its content, and the consumers that would load it."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.adapters.formats import LoadedAdapter, LoraDelta, consumers, low_rank
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.export import require_family

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
    """Return for each consumer whether it loads the file: yes, partly, after export, no or unknown."""
    if adapter.nonfinite_tensors:
        return dict.fromkeys(consumers.CONSUMERS, "no: it contains NaN or infinity")
    family = adapter.family
    if family is None:
        return dict.fromkeys(consumers.CONSUMERS, "unknown: the family is not certain, give --family")
    return {name: _support_text(adapter, family, name) for name in consumers.CONSUMERS}


def _support_text(adapter: LoadedAdapter, family: str, consumer: str) -> str:
    rule = consumers.loader_rules(family).get(consumer)
    if rule is None:
        return "no: it reads no adapters of this family"
    ignored = consumers.unsupported_modules(family, consumer, adapter.deltas)
    if ignored:
        return f"partly: it would ignore {len(ignored)} of {len(adapter.deltas)} modules, first {ignored[0]}"
    if _loads_unchanged(adapter, rule, consumer):
        return "yes"
    return f"after export: run `lorakit export --for {consumer}`"


def _loads_unchanged(adapter: LoadedAdapter, rule: consumers.LoaderRule, consumer: str) -> bool:
    """Return True if the layout and the scales are the consumer's own.

    In dotted layouts only the program that wrote an alpha reads it, so the scales must be 1.
    """
    loras = [delta for delta in adapter.deltas.values() if isinstance(delta, LoraDelta)]
    if adapter.layout != rule.layout or len(loras) < len(adapter.deltas):
        return False
    if rule.layout == "kohya":
        return consumer != "diffusers" or len({round(lora.scale * lora.rank, 4) for lora in loras}) == 1
    return all(abs(lora.scale - 1) < 1e-6 for lora in loras)


def check_consumer_loads(adapter: LoadedAdapter, consumer: str) -> LoadCheck:
    """Check whether a consumer loads a file without conversion and with its full effect.

    Raises ConfigError if the family is not certain.
    """
    text = _support_text(adapter, require_family(adapter), consumer)
    return LoadCheck(text == "yes", text)


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
