"""The frozen base model in 4 or 8 bits: linear layers become bitsandbytes', one at a time, on any device.

Only the layers inside the numbered blocks of a denoiser are quantized, which have nearly all of its
parameters, modulation included. Layers outside them (patch, text and time embeddings, the last layer) keep
their precision, as do norms, convolutions and the adapter itself. NF4 and training through it: QLoRA,
arXiv:2305.14314; 8 bits with separate outliers: arXiv:2208.07339.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lorakit.core.errors import ConfigError

_NUMBERED_BLOCK = re.compile(r"(^|\.)\d+\.")
_KEEP_PRECISION = re.compile(r"embed|time_|distilled_guidance")  # inside of numbered blocks too


def is_quantizable(name: str, module: nn.Module) -> bool:
    """Return True if `quantize_linear_layers` replaces this layer of a denoiser."""
    # subclasses of Linear compute something else than a product
    return (
        type(module) is nn.Linear and bool(_NUMBERED_BLOCK.search(name)) and not _KEEP_PRECISION.search(name)
    )


def quantize_linear_layers(
    denoiser: nn.Module, quantization: str, device: torch.device | str, compute_dtype: torch.dtype
) -> int:
    """Replace linear layers in place by quantized ones ("nf4", "int8") on `device`; returns their number.

    Call it before the adapter is injected. The rest of the denoiser stays on its device. Products are
    computed in `compute_dtype`. Raises ConfigError if no layer can be quantized.
    """
    # it warns for every product on a GPU that 8-bit products use half precision
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    names = [name for name, module in denoiser.named_modules() if is_quantizable(name, module)]
    if not names:
        raise ConfigError(
            "no layer of this base model can be quantized", where="memory.quantize", remedy="leave it out"
        )
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = denoiser.get_submodule(parent)
        setattr(owner, leaf, QUANTIZED_LAYERS[quantization](getattr(owner, leaf), compute_dtype).to(device))
    gc.collect()
    return len(names)


BYTES_PER_WEIGHT = {"nf4": 0.5 + 1 / 64, "int8": 1.0}
"""nf4: 4 bits, and a scale of 8 bits for each 64 weights."""


def bytes_saved(denoiser: nn.Module, quantization: str) -> int:
    """Return the bytes that quantizing a denoiser would save, also one that is quantized in another way."""
    saved = 0.0
    for name, module in denoiser.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not weight.requires_grad and _is_large(name, module):
            saved += weight.numel() * (weight.element_size() - BYTES_PER_WEIGHT[quantization])
    return int(saved)


def _is_large(name: str, module: nn.Module) -> bool:
    """Return True for a layer in full precision that can be quantized, or one in 8 bits."""
    return is_quantizable(name, module) or type(module).__name__ == "Linear8bitLt"


def _nf4(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):  # its own weights would be discarded
        layer = Linear4bit(*_shape(linear), bias=False, compute_dtype=compute_dtype, quant_type="nf4")
    layer.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=layer)
    # without gradients, some CPUs would repack the weights permanently in a form without gradients
    layer.support_avx512bf16_for_cpu = False
    return _with_bias(layer, linear, compute_dtype)


def _int8(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    with torch.device("meta"):
        layer = Linear8bitLt(*_shape(linear), bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return _with_bias(layer, linear, compute_dtype)


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def _with_bias(layer: Any, linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.data.to(compute_dtype), requires_grad=False)
    module: nn.Module = layer.train(linear.training)
    return module


QUANTIZED_LAYERS: dict[str, Callable[[nn.Linear, torch.dtype], nn.Module]] = {"nf4": _nf4, "int8": _int8}
