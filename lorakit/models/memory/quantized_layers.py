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
from typing import Any

import torch
from torch import nn

from lorakit.models.memory.quantized_products import (
    FP8,
    Fp8Product,
    IntegerProduct,
    Nf4Product,
    RowScaledProduct,
    fp8_rows,
    integer_rows,
    multiplies_fp8,
    multiplies_integers,
)

_NF4_BLOCK, _SCALE_BLOCK = 64, 256
_ENCODED_AT_ONCE = 1 << 22  # weights, a multiple of the blocks

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
        """Use these tensors, without a copy."""
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
        """Move the tensors; conversions to another type change none of them."""

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
        return _encode_rows(weight, integer_rows)

    def dequantize(self) -> torch.Tensor:
        return (self.weight * self.scale[:, None]).to(self.compute_dtype)

    def _has_products(self, device: torch.device) -> bool:
        is_aligned = self.in_features % 8 == 0 and self.out_features % 8 == 0
        return is_aligned and multiplies_integers(device)

    def _multiply(self, value: torch.Tensor) -> torch.Tensor:
        product = IntegerProduct if self.has_products else RowScaledProduct
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
        codes = _encode_rows(weight, fp8_rows)
        return codes | {"weight": codes["weight"].view(torch.uint8)}

    def dequantize(self) -> torch.Tensor:
        return (self.weight.view(FP8).float() * self.scale[:, None]).to(self.compute_dtype)

    def _has_products(self, device: torch.device) -> bool:
        is_aligned = self.in_features % 16 == 0 and self.out_features % 16 == 0
        return is_aligned and self.compute_dtype != torch.float32 and multiplies_fp8(device)

    def _multiply(self, value: torch.Tensor) -> torch.Tensor:
        product = Fp8Product if self.has_products else RowScaledProduct
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
        result: torch.Tensor = Nf4Product.apply(value, self._state, self.weight, *self._scales())
        return result


def _encode_rows(
    weight: torch.Tensor, encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> Codes:
    """Encode a few rows at a time: `encode` needs several times their memory."""
    rows_at_once = max(1, _ENCODED_AT_ONCE // weight.shape[1])
    parts = [encode(part.float()) for part in weight.detach().cpu().split(rows_at_once)]
    scales = torch.cat([scale.squeeze(1) for _, scale in parts])
    return {"weight": torch.cat([codes for codes, _ in parts]), "scale": scales}


LAYERS: dict[str, type[QuantizedLinear]] = {"nf4": Nf4Linear, "int8": Int8Linear, "fp8": Fp8Linear}
"""By their name in `memory.quantize`."""


def quantized_layer(
    linear: nn.Linear, quantization: str, compute_dtype: torch.dtype, device: torch.device | str
) -> QuantizedLinear:
    """Return a layer with the quantized weight of `linear`, on `device`."""
    layer = LAYERS[quantization](linear, compute_dtype, device)
    layer.set_codes(layer.encode(linear.weight))
    return layer.to(device)
