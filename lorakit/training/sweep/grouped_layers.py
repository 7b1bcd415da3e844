"""A layer of the base model with the adapters of several members: each adapter computes its member's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorakit.training.sweep.row_groups import BaseLayer, RowGroups


class AdaptedLayer(BaseLayer):
    """The forward pass of one layer that some members adapt.

    LoRA adds to the output of the base layer, which is computed once for all rows. Adapters that change the
    weight itself (DoRA, LoKr, LoHa, OFT), and those with two parts (PiSSA, OLoRA), compute their rows alone.
    """

    def __init__(self, layer: nn.Module, groups: RowGroups, adapted: Mapping[int, nn.Module]) -> None:
        """`adapted` are the layers of members' own networks, by the number of the member."""
        super().__init__(layer, groups)
        self.adapted = adapted

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the output (N, ...) for the rows of all members."""
        layers = [self.adapted.get(member) for member in self.groups.members]
        if all(_is_plain_linear(layer, x) for layer in layers):
            base = super().__call__(x, *args, **kwargs)
            return _grouped_linear(x, base, self.groups.sizes(x), layers)
        parts = self.groups.split(x)
        if all(_is_convolution(layer) for layer in layers):
            base = super().__call__(x, *args, **kwargs)
            bases = base.split(self.groups.sizes(base))
            return torch.cat([_add_low_rank(*row) for row in zip(layers, parts, bases, strict=True)])
        return torch.cat(
            [
                layer(part, *args, **kwargs) if layer is not None else self._forward(part, *args, **kwargs)
                for layer, part in zip(layers, parts, strict=True)
            ]
        )


def _is_additive(layer: Any) -> bool:
    """Return True for LoRA without a variant such as DoRA: it adds a product to the base layer's output."""
    from peft.tuners.lora.layer import LoraLayer

    return isinstance(layer, LoraLayer) and not any(a in layer.lora_variant for a in layer.active_adapters)


def _is_convolution(layer: Any) -> bool:
    return (
        _is_additive(layer)
        and len(layer.active_adapters) == 1
        and not isinstance(layer.get_base_layer(), nn.Linear)
    )


def _is_plain_linear(layer: Any, x: torch.Tensor) -> bool:
    """Return True for LoRA with one pair of matrices of the input's dtype, without dropout and bias."""
    if not _is_additive(layer):
        return False
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1:
        return False
    down, up, dropout = layer.lora_A[names[0]], layer.lora_B[names[0]], layer.lora_dropout[names[0]]
    return (
        type(down) is nn.Linear
        and type(up) is nn.Linear
        and down.bias is None
        and up.bias is None
        and isinstance(dropout, nn.Identity)
        and x.dtype == down.weight.dtype == up.weight.dtype
        and not torch.is_autocast_enabled(x.device.type)
    )


def _add_low_rank(layer: Any, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return a layer's output (B, ...) as peft computes it, from that of its base layer."""
    result = base
    for name in layer.active_adapters:
        if name in layer.lora_A:
            x = layer._cast_input_dtype(x, layer.lora_A[name].weight.dtype)
            delta = layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](x)))
            result = result + delta * layer.scaling[name]
    return result.to(base.dtype)


def _grouped_linear(x: torch.Tensor, base: torch.Tensor, sizes: list[int], layers: list[Any]) -> torch.Tensor:
    names = [next(name for name in layer.active_adapters if name in layer.lora_A) for layer in layers]
    pairs = list(zip(layers, names, strict=True))
    down = [layer.lora_A[name].weight for layer, name in pairs]
    up = [layer.lora_B[name].weight for layer, name in pairs]
    scales = tuple(float(layer.scaling[name]) for layer, name in pairs)
    output: torch.Tensor = GroupedLowRank.apply(x, base, tuple(sizes), scales, *down, *up)
    return output


class GroupedLowRank(torch.autograd.Function):
    """base + scale_k B_k A_k x for the rows of each member k, with one node of autograd for all of them.

    x (N, ..., in), base (N, ..., out), A_k (rank_k, in), B_k (out, rank_k). Products, their order and their
    operands are those of `torch.nn.functional.linear` and its gradient, so that the bits are the same.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: torch.Tensor,
        sizes: tuple[int, ...],
        scales: tuple[float, ...],
        *matrices: torch.Tensor,
    ) -> torch.Tensor:
        """Return the sum of the base layer's output and each member's product."""
        count = len(sizes)
        down, up = matrices[:count], matrices[count:]
        rows = [size * (x[0].numel() // x.shape[-1]) for size in sizes]
        flat = x.reshape(-1, x.shape[-1])
        hidden = [part.mm(a.t()) for part, a in zip(flat.split(rows), down, strict=True)]
        delta = base.new_empty(len(flat), base.shape[-1])
        for part, h, b in zip(delta.split(rows), hidden, up, strict=True):
            torch.mm(h, b.t(), out=part)
        _scale(delta, rows, scales)
        ctx.save_for_backward(flat, *hidden, *matrices)
        ctx.rows, ctx.scales, ctx.shape = rows, scales, x.shape
        return delta.view(base.shape).add_(base)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return the gradients of x, base and the matrices."""
        flat, *saved = ctx.saved_tensors
        count, rows = len(ctx.rows), ctx.rows
        hidden, down, up = saved[:count], saved[count : 2 * count], saved[2 * count :]
        scaled = gradient.reshape(-1, gradient.shape[-1])
        scaled = _scale(scaled.clone(memory_format=torch.contiguous_format), rows, ctx.scales)
        grad_x = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        parts = grad_x.split(rows) if grad_x is not None else [None] * count
        grad_down, grad_up = [], []
        for part, g, x, h, a, b in zip(
            parts, scaled.split(rows), flat.split(rows), hidden, down, up, strict=True
        ):
            grad_up.append(g.t().mm(h))
            grad_hidden = g.mm(b)
            grad_down.append(grad_hidden.t().mm(x))
            if part is not None:
                torch.mm(grad_hidden, a, out=part)
        shaped = grad_x.view(ctx.shape) if grad_x is not None else None
        return (shaped, gradient, None, None, *grad_down, *grad_up)


def _scale(values: torch.Tensor, rows: list[int], scales: tuple[float, ...]) -> torch.Tensor:
    """Multiply each member's rows by its scale, in place."""
    if len(set(scales)) == 1:
        return values.mul_(scales[0])
    for part, scale in zip(values.split(rows), scales, strict=True):
        part.mul_(scale)
    return values
