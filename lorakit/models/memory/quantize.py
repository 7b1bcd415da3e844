"""Selection of the linear layers of a frozen base model that are quantized, and their replacement.

Only the layers inside the numbered blocks of a denoiser are quantized, which have nearly all of its
parameters, modulation included. Layers outside them (patch, text and time embeddings, the last layer) keep
their precision, as do norms, convolutions and the adapter itself.
"""

from __future__ import annotations

import gc
import re

import torch
from torch import nn

from lorakit.core.errors import ConfigError
from lorakit.models.memory import quantized_layers
from lorakit.models.memory.quantized_layers import QuantizedLinear

_NUMBERED_BLOCK = re.compile(r"(^|\.)\d+\.")
_KEEP_PRECISION = re.compile(r"embed|time_|distilled_guidance")  # inside of numbered blocks too


def is_quantizable(name: str, module: nn.Module) -> bool:
    """Return True if this layer of a denoiser is quantized."""
    # subclasses of Linear compute something else than a product
    return (
        type(module) is nn.Linear and bool(_NUMBERED_BLOCK.search(name)) and not _KEEP_PRECISION.search(name)
    )


def quantizable_layers(denoiser: nn.Module) -> list[str]:
    """Return the names of the layers that are quantized. Raises ConfigError if there are none."""
    names = [name for name, module in denoiser.named_modules() if is_quantizable(name, module)]
    if not names:
        raise ConfigError(
            "no layer of this base model can be quantized", where="memory.quantize", remedy="leave it out"
        )
    return names


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of another."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)


def quantize_linear_layers(
    denoiser: nn.Module,
    quantization: str,
    device: torch.device | str,
    compute_dtype: torch.dtype,
) -> int:
    """Replace linear layers in place by quantized ones ("nf4", "int8", "fp8") on `device`; returns their
    number.

    Call it before the adapter is injected. The rest of the denoiser stays on its device. Products are
    computed in `compute_dtype`. Raises ConfigError if no layer can be quantized.
    """
    names = quantizable_layers(denoiser)
    for name in names:
        linear = denoiser.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = quantized_layers.quantized_layer(linear, quantization, compute_dtype, device)
        replace_layer(denoiser, name, layer)
    gc.collect()
    return len(names)


BYTES_PER_WEIGHT = {"nf4": 0.5 + 1 / 64 + 1 / 4096, "int8": 1.0, "fp8": 1.0}
"""nf4: 4 bits, a scale of 8 bits for each 64 weights, and one of 32 bits for each 256 of those."""


def bytes_saved(denoiser: nn.Module, quantization: str) -> int:
    """Return the bytes that quantizing a denoiser would save, also one that is quantized in another way."""
    saved = 0.0
    for name, module in denoiser.named_modules():
        if not isinstance(module, nn.Linear) or module.weight.requires_grad:
            continue
        if isinstance(module, QuantizedLinear) or is_quantizable(name, module):
            each = module.weight.nbytes / (module.in_features * module.out_features)
            saved += module.in_features * module.out_features * (each - BYTES_PER_WEIGHT[quantization])
    return max(0, int(saved))
