"""What an adapter file is, and which consumer would read how much of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.formats import LoadedAdapter, LoraDelta, consumers, low_rank, read_adapter_file
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.core.errors import ConfigError

_MAX_METADATA_CHARS = 400  # characters of one metadata value
_NUMBER = re.compile(r"^(.*?\.\d+)(\..*)?$")


def inspect_adapter(path: Path, family: str | None = None) -> dict[str, Any]:
    """Everything worth knowing about a file, as plain values; the file is only read.

    `unsound` lists the tensors with NaN or infinity; a block of which one changes has no norm.
    """
    adapter = read_adapter_file(path, family, unsound=True)
    kinds = Counter(change.kind for change in adapter.changes.values())
    ranks = Counter(change.rank for change in adapter.changes.values())
    scales = Counter(round(c.scale, 6) for c in adapter.changes.values() if isinstance(c, LoraDelta))
    return {
        "path": str(path),
        "families": list(adapter.families),
        "layout": adapter.layout,
        "components": {part: len(adapter.of(part)) for part in adapter.components},
        "kinds": dict(kinds),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "scales": {f"{scale:g}": count for scale, count in scales.most_common(8)},
        "numbers": sum(tensor.numel() for c in adapter.changes.values() for tensor in c.tensors()),
        "modules": dict(sorted(Counter(_module_type(module) for module in adapter.changes).items())),
        "norms": {b: round(v, 6) if math.isfinite(v) else None for b, v in _norms(adapter).items()},
        "sound": not adapter.unsound,
        "unsound": list(adapter.unsound),
        "loads_in": consumer_support(adapter),
        "metadata": {key: value[:_MAX_METADATA_CHARS] for key, value in sorted(adapter.metadata.items())},
    }


def consumer_support(adapter: LoadedAdapter) -> dict[str, str]:
    """For each consumer what it would make of the file as it is, and what an export would give it."""
    if adapter.unsound:
        return dict.fromkeys(consumers.CONSUMERS, "no: it holds NaN or infinity")
    if adapter.family is None:
        return {name: "unknown: the family is not certain, give --family" for name in consumers.CONSUMERS}
    return {name: _support_text(adapter, adapter.family, name) for name in consumers.CONSUMERS}


def _support_text(adapter: LoadedAdapter, family: str, consumer: str) -> str:
    rule = consumers.loader_rules(family).get(consumer)
    if rule is None:
        return "no: it reads no adapters of this family"
    ignored = consumers.unsupported_modules(family, consumer, adapter.changes)
    if ignored:
        return (
            f"in part: {len(ignored)} of {len(adapter.changes)} modules would be ignored, first {ignored[0]}"
        )
    return "yes" if _loads_unchanged(adapter, rule, consumer) else f"after `lorakit export --for {consumer}`"


def _loads_unchanged(adapter: LoadedAdapter, rule: consumers.LoaderRule, consumer: str) -> bool:
    """Whether layout and numbers are already the consumer's: in dotted layouts no alpha is read but by the
    tool that wrote it."""
    if adapter.layout != rule.layout or any(not isinstance(c, LoraDelta) for c in adapter.changes.values()):
        return False
    changes = [change for change in adapter.changes.values() if isinstance(change, LoraDelta)]
    if rule.layout == "kohya":
        return consumer != "diffusers" or len({round(c.scale * c.rank, 4) for c in changes}) == 1
    return all(abs(change.scale - 1) < 1e-6 for change in changes)


def check_consumer_loads(path: Path, consumer: str, family: str | None = None) -> tuple[bool, str]:
    """(whether a consumer loads the file as it is with its full effect, why)."""
    adapter = read_adapter_file(path, family)
    if adapter.family is None:
        raise ConfigError(
            f"the family is not certain: {', '.join(adapter.families) or 'none fits'}",
            where=str(path),
            remedy="give --family NAME",
        )
    verdict = _support_text(adapter, adapter.family, consumer)
    return verdict == "yes", verdict


def _module_type(module: str) -> str:
    """`unet.down_blocks.0.attentions.1...attn1.to_q` -> `attn1.to_q`."""
    parts = [part for part in module.split(".") if not part.isdigit()]
    return ".".join(parts[-2:])


def _norms(adapter: LoadedAdapter) -> dict[str, float]:
    """Frobenius norm of the change by block; kinds that need the base are left out."""
    squares: dict[str, float] = {}
    for module, change in adapter.changes.items():
        if not change.needs_base:
            block = _block(module)
            squares[block] = squares.get(block, 0.0) + delta_norm(change) ** 2
    return {block: value**0.5 for block, value in sorted(squares.items())}


def delta_norm(change: DeltaWeight) -> float:
    """Frobenius norm of a change that does not depend on the base."""
    if isinstance(change, LoraDelta):
        return low_rank.sum_norm([change])
    return float(torch.linalg.vector_norm(change.delta()))


def _block(module: str) -> str:
    match = _NUMBER.match(module)
    return match[1] if match else module
