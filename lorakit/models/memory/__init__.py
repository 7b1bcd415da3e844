"""Memory of a training: estimates, quantized and streamed weights, recomputed activations."""

from lorakit.models.memory.allocation import empty_device_cache, format_bytes, is_out_of_memory
from lorakit.models.memory.estimate import (
    activation_bytes,
    optimizer_state_bytes,
    total_bytes,
)
from lorakit.models.memory.settings import MemorySettings, Quantization

__all__ = [
    "MemorySettings",
    "Quantization",
    "activation_bytes",
    "empty_device_cache",
    "format_bytes",
    "is_out_of_memory",
    "optimizer_state_bytes",
    "total_bytes",
]
