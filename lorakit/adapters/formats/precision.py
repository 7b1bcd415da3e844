"""Number types of written files: the factors are rounded, the error of the delta weights is stated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorakit.core.errors import ConfigError, NumericError

_KEPT_ENDS = (
    ".alpha",
    ".dora_scale",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight",
    ".reshape_weight",
)
"""Tensors that keep float32: a magnitude multiplies the whole weight, so its rounding could exceed the
change."""
_FACTORS = {"lora_A.weight": "lora_B.weight", "lora_down.weight": "lora_up.weight"}


@dataclass(frozen=True)
class Precision:
    """A number type, and the largest relative error of a delta weight after rounding."""

    name: str
    dtype: torch.dtype
    tolerance: float


PRECISIONS = {
    "fp16": Precision("fp16", torch.float16, 2e-3),
    "bf16": Precision("bf16", torch.bfloat16, 1.6e-2),
    "fp32": Precision("fp32", torch.float32, 1e-5),
}
"""By the names of `--dtype`."""


def get_precision(name: str) -> Precision:
    """Return a number type by name; ConfigError for an unknown one."""
    if name not in PRECISIONS:
        raise ConfigError(f"unknown number type {name!r}", remedy=f"known: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def round_tensors(
    tensors: Mapping[str, torch.Tensor], precision: Precision, where: str
) -> dict[str, torch.Tensor]:
    """Return tensors in a number type; alphas, magnitudes and shapes keep theirs.

    LoRA's two factors are first made equally large, by a power of two, so that small ones do not underflow.
    Raises NumericError for values that the type cannot hold.
    """
    if precision.dtype is torch.float32:
        return dict(tensors)
    balanced = _balance(tensors)
    rounded = {
        key: tensor if key.endswith(_KEPT_ENDS) else tensor.to(precision.dtype)
        for key, tensor in balanced.items()
    }
    for key, tensor in rounded.items():
        if not bool(tensor.isfinite().all()):
            raise NumericError(
                f"{precision.name} cannot hold the values of this tensor",
                where=f"{where}, {key}",
                remedy="use --dtype fp32",
            )
    return rounded


def _balance(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    balanced = dict(tensors)
    for key, down in tensors.items():
        for end, other in _FACTORS.items():
            up = tensors.get(key.removesuffix(end) + other) if key.endswith(f".{end}") else None
            if up is None:
                continue
            sizes = [float(factor.float().square().mean().sqrt()) for factor in (down, up)]
            if min(sizes) > 0:
                factor = 2.0 ** round(float(torch.tensor(sizes[1] / sizes[0]).log2()) / 2)
                balanced[key] = down * factor
                balanced[key.removesuffix(end) + other] = up / factor
    return balanced
