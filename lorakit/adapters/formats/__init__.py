"""Adapter files of any origin, and exports in the layouts that other programs read.

Where one file serves every consumer, one is written; a consumer that needs other names or numbers gets its
own. Before a file is written its bytes are read back by the consumers' key rules (`consumers`): every key
must be used, and the delta weights must be those of training.

    from lorakit.adapters import formats
    adapter = formats.read_adapter_file("dog.safetensors")  # of any origin; no code in it is executed
    adapter.family, adapter.components, adapter.lorakit_metadata
    for module, delta in adapter.deltas.items():            # "unet.down_blocks.0...attn1.to_q"
        delta.method, delta.rank, delta.dense()             # its change (out, in, ...) in float32
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
from lorakit.adapters.formats.export import (
    CONSUMERS,
    export_adapter,
    export_loaded_adapter,
    save_adapter,
)
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
    "export_loaded_adapter",
    "parse_adapter",
    "read_adapter_file",
    "relative_error",
    "save_adapter",
]
