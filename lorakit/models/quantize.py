"""The frozen base in 4 or 8 bits: linear layers swapped for bitsandbytes', one at a time, on any device.

Only the layers inside the numbered blocks of a denoiser are swapped, which hold nearly all of its numbers,
modulation included. What stands outside (patch, text and time embeddings, the last layer) keeps its
precision, as do norms, convolutions and the adapter itself. NF4 and training through it: QLoRA,
arXiv:2305.14314; 8 bits with outliers kept apart: arXiv:2208.07339.
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

_NUMBERED_BLOCK = re.compile(r"(^|\.)\d+\.")  # of a numbered block
_KEEP_PRECISION = re.compile(
    r"embed|time_|distilled_guidance"
)  # by name, where blocks or their makers hold them too


def is_quantizable(name: str, module: nn.Module) -> bool:
    """Whether `swap` replaces a layer of a denoiser."""
    # subclasses compute something else than a product
    return (
        type(module) is nn.Linear and bool(_NUMBERED_BLOCK.search(name)) and not _KEEP_PRECISION.search(name)
    )


def quantize_linear_layers(
    denoiser: nn.Module, kind: str, device: torch.device | str, compute: torch.dtype
) -> int:
    """Replace linear layers in place by ones of `kind` ("nf4", "int8") on `device`; returns how many.

    Called before the adapter is injected. The rest of the denoiser stays where it is. Products are computed
    in `compute`.
    """
    # it would say for every product on a GPU that 8-bit products take half precision
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    chosen = [name for name, module in denoiser.named_modules() if is_quantizable(name, module)]
    if not chosen:
        raise ConfigError(
            "no layer of this base can be quantised", where="memory.quantize", remedy="leave it out"
        )
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        owner = denoiser.get_submodule(parent)
        setattr(owner, leaf, QUANTIZED_LAYERS[kind](getattr(owner, leaf), compute).to(device))
    gc.collect()
    return len(chosen)


def _nf4(linear: nn.Linear, compute: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):  # its own weights would only be thrown away
        layer = Linear4bit(*_shape(linear), bias=False, compute_dtype=compute, quant_type="nf4")
    layer.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=layer)
    # Without gradients, some CPUs would repack the weights for good in a form that has no gradient.
    layer.support_avx512bf16_for_cpu = False
    return _with_bias(layer, linear, compute)


def _int8(linear: nn.Linear, compute: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    with torch.device("meta"):
        layer = Linear8bitLt(*_shape(linear), bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return _with_bias(layer, linear, compute)


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def _with_bias(layer: Any, linear: nn.Linear, compute: torch.dtype) -> nn.Module:
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.data.to(compute), requires_grad=False)
    made: nn.Module = layer.train(linear.training)
    return made


QUANTIZED_LAYERS: dict[str, Callable[[nn.Linear, torch.dtype], nn.Module]] = {"nf4": _nf4, "int8": _int8}
