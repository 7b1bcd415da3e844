"""Products of rows with quantized weights, and their gradients for the rows: integers, e4m3, nf4."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

_LARGEST_INT8, _LARGEST_FP8 = 127.0, 448.0
_SMALLEST_SCALE = 1e-30  # of a row of zeros
FP8 = torch.float8_e4m3fn
_MIN_ROWS = 17  # of torch's integer product on CUDA


class IntegerProduct(torch.autograd.Function):
    """Rows (n, inputs) with codes (outputs, inputs) and their scales (outputs,), by products of integers."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        return _integer_product(value, codes.t(), scale).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        (gradient,) = gradients
        return _integer_product(gradient * scale, codes).to(gradient.dtype), None, None


class Fp8Product(torch.autograd.Function):
    """Rows (n, inputs) with e4m3 codes (outputs, inputs) and their scales (outputs,), by products of e4m3."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        return _fp8_product(value, codes.view(FP8).t(), scale).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        (gradient,) = gradients
        by_columns = codes.view(FP8).t().contiguous().t()  # the only order that GPUs multiply
        ones = torch.ones(codes.shape[1], dtype=torch.float32, device=codes.device)
        return _fp8_product(gradient * scale, by_columns, ones).to(gradient.dtype), None, None


class RowScaledProduct(torch.autograd.Function):
    """Rows (n, inputs) with the weight that integer or e4m3 codes and their scales stand for."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        return value @ _row_scaled_weight(codes, scale, value.dtype).t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ _row_scaled_weight(codes, scale, gradient.dtype), None, None


class Nf4Product(torch.autograd.Function):
    """Rows (n, inputs) with a weight in nf4; `read_state` describes its scales to bitsandbytes."""

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        read_state: Callable[..., Any],
        codes: torch.Tensor,
        *scales: torch.Tensor,
    ) -> torch.Tensor:
        from bitsandbytes import matmul_4bit

        ctx.read_state = read_state
        ctx.save_for_backward(codes, *scales)
        result: torch.Tensor = matmul_4bit(value, codes, quant_state=read_state(*scales))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from bitsandbytes.functional import dequantize_4bit

        codes, *scales = ctx.saved_tensors
        (gradient,) = gradients
        weight = dequantize_4bit(codes, ctx.read_state(*scales))
        return gradient @ weight.to(gradient.dtype), None, None, *(None for _ in scales)


def _row_scaled_weight(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    numbers = codes.view(FP8).float() if codes.dtype == torch.uint8 else codes
    return (numbers * scale[:, None]).to(dtype)


def _row_scales(rows: torch.Tensor, largest: float) -> torch.Tensor:
    """Return the step (n, 1) in float32 with which the largest value of each row becomes `largest`."""
    peaks = torch.linalg.vector_norm(rows, ord=float("inf"), dim=1, keepdim=True).float()
    return (peaks / largest).clamp(min=_SMALLEST_SCALE)


def integer_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 8-bit integers, and the step (n, 1) of each row; a value that is not finite spoils its step."""
    scale = _row_scales(rows, _LARGEST_INT8)
    return (rows / scale).round_().to(torch.int8), scale


def fp8_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return e4m3 numbers, and the step (n, 1) of each row."""
    scale = _row_scales(rows, _LARGEST_FP8)
    return (rows / scale).to(FP8), scale


def _integer_product(
    rows: torch.Tensor, codes: torch.Tensor, column_scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply rows (n, k), as integers, with codes (k, m); returns (n, m) in float32."""
    integers, scale = integer_rows(rows)
    missing = _MIN_ROWS - len(rows) if rows.device.type == "cuda" else 0
    if missing > 0:
        integers = nn.functional.pad(integers, (0, 0, 0, missing))
    result = torch._int_mm(integers, codes)[: len(rows)] * scale
    return result if column_scale is None else result.mul_(column_scale)


def _fp8_product(rows: torch.Tensor, codes: torch.Tensor, column_scale: torch.Tensor) -> torch.Tensor:
    """Multiply rows (n, k), in e4m3, with codes (k, m) that lie by columns; returns (n, m) in bfloat16."""
    numbers, scale = fp8_rows(rows)
    return torch._scaled_mm(
        numbers,
        codes,
        scale_a=scale,
        scale_b=column_scale[None],
        out_dtype=torch.bfloat16,
        use_fast_accum=rows.device.type == "cuda",
    )


@lru_cache
def multiplies_integers(device: torch.device) -> bool:
    """Return True if a device has a fast product of 8-bit integers."""
    if device.type == "meta" or (device.type == "cpu" and not torch.backends.mkldnn.is_available()):
        return False
    rows = torch.ones(32, 32, dtype=torch.int8, device=device)
    try:
        return int(torch._int_mm(rows, rows.t())[0, 0]) == 32
    except (RuntimeError, NotImplementedError):
        return False


@lru_cache
def multiplies_fp8(device: torch.device) -> bool:
    """Return True if a device has a fast product of e4m3 with a scale for each row and column."""
    if device.type in ("meta", "cpu"):  # torch has it for CPUs too, where it is slow
        return False
    rows = torch.ones(32, 32, device=device)
    try:
        return float(_fp8_product(rows, rows.to(FP8).t(), rows[0])[0, 0]) == 32.0
    except (RuntimeError, NotImplementedError):
        return False
