"""Frozen linear layers in 4 or 8 bits: nf4, int8 and fp8 behind one class, on any device.

A layer keeps its codes as the parameter `weight` (frozen, a type without fractions, so that no conversion of
the network changes it) and its scales as buffers: moving, copying and streaming a network needs to know
nothing about quantization. A forward pass saves these tensors themselves, and no activation, for the gradient
of the input, so that weights which were moved in the meantime are read where they are then.

NF4 and training through it: QLoRA, arXiv:2305.14314, with the kernels of bitsandbytes. int8 is W8A8: one
scale for each output of the weight, one for each token, which is computed from the token (no constant to
calibrate, no synchronization); both the forward pass and the gradient of the input multiply integers. fp8 is
e4m3, scaled in the same way, with torch's kernel where the device has one. torchao multiplies integers in its
training only with weights that are kept in bf16, and its quantized weights have no such gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

_LARGEST_INT8, _LARGEST_FP8 = 127.0, 448.0
_SMALLEST_SCALE = 1e-30  # of a row of zeros
_FP8 = torch.float8_e4m3fn
_NF4_BLOCK, _SCALE_BLOCK = 64, 256
_ENCODED_AT_ONCE = 1 << 22  # weights, a multiple of the blocks
_MIN_ROWS = 17  # of torch's integer product on CUDA

Codes = dict[str, torch.Tensor]
"""The tensors of a quantized weight by their names in the layer: `weight`, and its scales."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is kept as codes; computes in `compute_dtype`.

    The codes of a new layer are on the meta device, until `set_codes`. The result has the type of the input,
    or `compute_dtype` inside autocast, as with a layer in full precision.
    """

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype, device: torch.device | str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype = compute_dtype
        shapes = {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, (shape, dtype) in self.code_shapes(self.out_features, self.in_features).items()
        }
        self.weight = nn.Parameter(shapes.pop("weight"), requires_grad=False)
        for name, tensor in shapes.items():
            self.register_buffer(name, tensor)
        bias = None if linear.bias is None else linear.bias.detach().to(compute_dtype)  # may be on meta
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.has_products = self._has_products(torch.device(device))
        self.train(linear.training)

    @property
    def W_q(self) -> torch.Tensor:
        """The codes: peft calls `dequantize` of a layer that has them under this name."""
        return self.weight

    @property
    def code_names(self) -> list[str]:
        """Names of the tensors of the quantized weight."""
        return list(self.code_shapes(self.out_features, self.in_features))

    def codes(self) -> Codes:
        """Return the tensors of the quantized weight by name."""
        return {name: getattr(self, name).detach() for name in self.code_names}

    @staticmethod
    @abstractmethod
    def code_shapes(rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type of each tensor of a quantized weight (rows, columns)."""

    @staticmethod
    @abstractmethod
    def encode(weight: torch.Tensor) -> Codes:
        """Quantize a weight (rows, columns); on the CPU, so that every machine gets the same codes."""

    @abstractmethod
    def dequantize(self) -> torch.Tensor:
        """Return the weight (outputs, inputs) in `compute_dtype`."""

    def _has_products(self, device: torch.device) -> bool:
        """Return True if `device` multiplies such codes, instead of the weight made from them."""
        return False

    @abstractmethod
    def _multiply(self, value: torch.Tensor) -> torch.Tensor:
        """Return the product of rows (n, inputs) with the weight, (n, outputs), without bias."""

    def set_codes(self, codes: Mapping[str, torch.Tensor]) -> None:
        """Use these tensors as they are, without a copy."""
        for name, tensor in codes.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False) if name == "weight" else tensor)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Return the layer's result for (..., inputs)."""
        rows = value.reshape(-1, self.in_features).to(self.compute_dtype)
        result = self._multiply(rows).view(*value.shape[:-1], self.out_features)
        if self.bias is not None:
            result = result + self.bias
        if torch.is_autocast_enabled(value.device.type):
            return result
        return result.to(value.dtype)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        """Move the tensors; conversions to another type leave them as they are."""

        def keep_type(tensor: torch.Tensor) -> Any:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(keep_type, recurse)


class Int8Linear(QuantizedLinear):
    """Weights in 8-bit integers, and inputs too where the device multiplies integers."""

    scale: torch.Tensor

    @staticmethod
    def code_shapes(rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((rows, columns), torch.int8), "scale": ((rows,), torch.float32)}

    @staticmethod
    def encode(weight: torch.Tensor) -> Codes:
        return _encode_rows(weight, _integer_rows)

    def dequantize(self) -> torch.Tensor:
        return (self.weight * self.scale[:, None]).to(self.compute_dtype)

    def _has_products(self, device: torch.device) -> bool:
        is_aligned = self.in_features % 8 == 0 and self.out_features % 8 == 0
        return is_aligned and multiplies_integers(device)

    def _multiply(self, value: torch.Tensor) -> torch.Tensor:
        product = _IntegerProduct if self.has_products else _RowScaledProduct
        result: torch.Tensor = product.apply(value, self.weight, self.scale)
        return result


class Fp8Linear(QuantizedLinear):
    """Weights in e4m3, and inputs too where the device multiplies them and computes in half precision."""

    scale: torch.Tensor

    @staticmethod
    def code_shapes(rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((rows, columns), torch.uint8), "scale": ((rows,), torch.float32)}

    @staticmethod
    def encode(weight: torch.Tensor) -> Codes:
        codes = _encode_rows(weight, _fp8_rows)
        return codes | {"weight": codes["weight"].view(torch.uint8)}

    def dequantize(self) -> torch.Tensor:
        return (self.weight.view(_FP8).float() * self.scale[:, None]).to(self.compute_dtype)

    def _has_products(self, device: torch.device) -> bool:
        is_aligned = self.in_features % 16 == 0 and self.out_features % 16 == 0
        return is_aligned and self.compute_dtype != torch.float32 and multiplies_fp8(device)

    def _multiply(self, value: torch.Tensor) -> torch.Tensor:
        product = _Fp8Product if self.has_products else _RowScaledProduct
        result: torch.Tensor = product.apply(value, self.weight, self.scale)
        return result


class Nf4Linear(QuantizedLinear):
    """Weights in 4 bits, a scale of 8 bits for each 64 of them; the kernels are those of bitsandbytes."""

    absmax: torch.Tensor
    absmax_scale: torch.Tensor
    absmax_code: torch.Tensor
    absmax_offset: torch.Tensor

    @staticmethod
    def code_shapes(rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        count = rows * columns
        blocks = -(-count // _NF4_BLOCK)
        return {
            "weight": (((count + 1) // 2, 1), torch.uint8),
            "absmax": ((blocks,), torch.uint8),
            "absmax_scale": ((-(-blocks // _SCALE_BLOCK),), torch.float32),
            "absmax_code": ((256,), torch.float32),
            "absmax_offset": ((), torch.float32),
        }

    @staticmethod
    def encode(weight: torch.Tensor) -> Codes:
        from bitsandbytes.functional import quantize_4bit, quantize_blockwise

        parts = [
            quantize_4bit(part.float(), blocksize=_NF4_BLOCK, quant_type="nf4")
            for part in weight.detach().cpu().reshape(-1).split(_ENCODED_AT_ONCE)
        ]
        absmax = torch.cat([state.absmax for _, state in parts])
        offset = absmax.mean()
        absmax_codes, nested = quantize_blockwise(absmax - offset, blocksize=_SCALE_BLOCK)
        return {
            "weight": torch.cat([codes for codes, _ in parts]),
            "absmax": absmax_codes,
            "absmax_scale": nested.absmax,
            "absmax_code": nested.code,
            "absmax_offset": offset,
        }

    def dequantize(self) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_4bit

        weight: torch.Tensor = dequantize_4bit(self.weight, self._state(*self._scales()))
        return weight

    def _scales(self) -> tuple[torch.Tensor, ...]:
        return self.absmax, self.absmax_scale, self.absmax_code, self.absmax_offset

    def _state(self, *scales: torch.Tensor) -> Any:
        """Return the description by which bitsandbytes reads these scales."""
        from bitsandbytes.functional import QuantState

        absmax, scale, code, offset = scales
        nested = QuantState(absmax=scale, code=code, blocksize=_SCALE_BLOCK, dtype=torch.float32)
        return QuantState(
            absmax=absmax,
            shape=torch.Size((self.out_features, self.in_features)),
            dtype=self.compute_dtype,
            blocksize=_NF4_BLOCK,
            quant_type="nf4",
            offset=offset,
            state2=nested,
        )

    def _multiply(self, value: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _Nf4Product.apply(value, self._state, self.weight, *self._scales())
        return result


class _IntegerProduct(torch.autograd.Function):
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


class _Fp8Product(torch.autograd.Function):
    """Rows (n, inputs) with e4m3 codes (outputs, inputs) and their scales (outputs,), by products of e4m3."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        return _fp8_product(value, codes.view(_FP8).t(), scale).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        (gradient,) = gradients
        by_columns = codes.view(_FP8).t().contiguous().t()  # the only order that GPUs multiply
        ones = torch.ones(codes.shape[1], dtype=torch.float32, device=codes.device)
        return _fp8_product(gradient * scale, by_columns, ones).to(gradient.dtype), None, None


class _RowScaledProduct(torch.autograd.Function):
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


class _Nf4Product(torch.autograd.Function):
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
    numbers = codes.view(_FP8).float() if codes.dtype == torch.uint8 else codes
    return (numbers * scale[:, None]).to(dtype)


def _row_scales(rows: torch.Tensor, largest: float) -> torch.Tensor:
    """Return the step (n, 1) in float32 with which the largest value of each row becomes `largest`."""
    peaks = torch.linalg.vector_norm(rows, ord=float("inf"), dim=1, keepdim=True).float()
    return (peaks / largest).clamp(min=_SMALLEST_SCALE)


def _integer_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 8-bit integers, and the step (n, 1) of each row; a value that is not finite spoils its step."""
    scale = _row_scales(rows, _LARGEST_INT8)
    return (rows / scale).round_().to(torch.int8), scale


def _fp8_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _row_scales(rows, _LARGEST_FP8)
    return (rows / scale).to(_FP8), scale


def _encode_rows(
    weight: torch.Tensor, encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> Codes:
    """Encode a few rows at a time: `encode` needs several times their memory."""
    rows_at_once = max(1, _ENCODED_AT_ONCE // weight.shape[1])
    parts = [encode(part.float()) for part in weight.detach().cpu().split(rows_at_once)]
    scales = torch.cat([scale.squeeze(1) for _, scale in parts])
    return {"weight": torch.cat([codes for codes, _ in parts]), "scale": scales}


def _integer_product(
    rows: torch.Tensor, codes: torch.Tensor, column_scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply rows (n, k), as integers, with codes (k, m); returns (n, m) in float32."""
    integers, scale = _integer_rows(rows)
    missing = _MIN_ROWS - len(rows) if rows.device.type == "cuda" else 0
    if missing > 0:
        integers = nn.functional.pad(integers, (0, 0, 0, missing))
    result = torch._int_mm(integers, codes)[: len(rows)] * scale
    return result if column_scale is None else result.mul_(column_scale)


def _fp8_product(rows: torch.Tensor, codes: torch.Tensor, column_scale: torch.Tensor) -> torch.Tensor:
    """Multiply rows (n, k), in e4m3, with codes (k, m) that lie by columns; returns (n, m) in bfloat16."""
    numbers, scale = _fp8_rows(rows)
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
        return float(_fp8_product(rows, rows.to(_FP8).t(), rows[0])[0, 0]) == 32.0
    except (RuntimeError, NotImplementedError):
        return False


LAYERS: dict[str, type[QuantizedLinear]] = {"nf4": Nf4Linear, "int8": Int8Linear, "fp8": Fp8Linear}
"""By their name in `memory.quantize`."""


def quantized_layer(
    linear: nn.Linear, quantization: str, compute_dtype: torch.dtype, device: torch.device | str
) -> QuantizedLinear:
    """Return a layer with the quantized weight of `linear`, on `device`."""
    layer = LAYERS[quantization](linear, compute_dtype, device)
    layer.set_codes(layer.encode(linear.weight))
    return layer.to(device)
