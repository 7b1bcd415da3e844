"""A trained adapter in the layouts that other programs read, each proven before the file exists.

Where one file serves every consumer, one is written; where a consumer wants other names or other numbers, it
gets a file of its own. Before a file is written its bytes are read back by the consumers' key rules
(`consumers`): every key must be consumed, the weight change must be training's.

    from lorakit import export
    adapter = export.load("dog.safetensors")            # of any origin; nothing in it is run
    adapter.family, adapter.components, adapter.facts
    for module, change in adapter.changes.items():      # "unet.down_blocks.0...attn1.to_q"
        change.kind, change.rank, change.delta()        # the change of that weight, (out, in, ...) float32
"""

from __future__ import annotations

from lorakit.adapters.formats.base_weights import Weights
from lorakit.adapters.formats.delta_weights import (
    Change,
    Dora,
    Full,
    Hadamard,
    Kronecker,
    LowRank,
    Rotation,
)
from lorakit.adapters.formats.export import CONSUMERS, export_adapter
from lorakit.adapters.formats.low_rank import relative_error
from lorakit.adapters.formats.read import Adapter, load, parse
from lorakit.adapters.formats.verify import TOLERANCE, Exported

__all__ = [
    "CONSUMERS",
    "TOLERANCE",
    "Adapter",
    "Change",
    "Dora",
    "Exported",
    "Full",
    "Hadamard",
    "Kronecker",
    "LowRank",
    "Rotation",
    "Weights",
    "export_adapter",
    "load",
    "parse",
    "relative_error",
]
