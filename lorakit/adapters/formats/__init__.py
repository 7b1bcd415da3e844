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

from lorakit.adapters.formats.base_weights import BaseWeights
from lorakit.adapters.formats.delta_weights import (
    DeltaWeight,
    DoraDelta,
    FullDelta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    OftDelta,
)
from lorakit.adapters.formats.export import CONSUMERS, export_adapter
from lorakit.adapters.formats.low_rank import relative_error
from lorakit.adapters.formats.read import LoadedAdapter, parse_adapter, read_adapter_file
from lorakit.adapters.formats.verify import TOLERANCE, ExportedFile

__all__ = [
    "CONSUMERS",
    "TOLERANCE",
    "BaseWeights",
    "DeltaWeight",
    "DoraDelta",
    "ExportedFile",
    "FullDelta",
    "LoadedAdapter",
    "LohaDelta",
    "LokrDelta",
    "LoraDelta",
    "OftDelta",
    "export_adapter",
    "parse_adapter",
    "read_adapter_file",
    "relative_error",
]
