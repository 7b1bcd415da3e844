"""Frozen convolutions in bfloat16 on a CPU, with weights that are arranged for its kernels once.

oneDNN arranges the weight of a convolution for its kernels in every call, which with small images takes
longer than the convolution itself. A frozen weight can be arranged once for the forward pass, and once for
the gradient of the input, which is the convolution of the gradient with the weight turned by 180 degrees.
The numbers have the same bits: each layer is compared before it is used, and left alone where they differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

MAX_BYTES = 256 << 20  # of all arranged weights; larger networks see larger images, and gain less
MIN_BYTES = 128 << 10  # of a weight; smaller ones are arranged in the time that these calls take
_TRIAL_SIDE = 16
_Arranged = tuple[torch.Tensor, torch.Tensor]


class PackedConvolution(torch.autograd.Function):
    """A convolution of stride 1 with arranged weights; only the input (N, C, H, W) gets a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weights: _Arranged,
        bias: torch.Tensor | None,
        padding: tuple[int, int],
        kernel_size: tuple[int, int],
    ) -> torch.Tensor:
        """Return the output (N, out channels, H, W)."""
        ctx.weights, ctx.padding, ctx.kernel_size = weights, padding, kernel_size
        return _convolve(x, weights[0], bias, padding)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return the gradient of the input."""
        padding = tuple(k - 1 - p for k, p in zip(ctx.kernel_size, ctx.padding, strict=True))
        return _convolve(gradient.contiguous(), ctx.weights[1], None, padding), None, None, None, None


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, ...]
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, list(padding), [1, 1], [1, 1], 1, "none", [], ""
    )
    return result.contiguous()  # as plain convolutions return it: layers behind round by the order in memory


def is_available() -> bool:
    """Return True if this build of torch has such kernels for bfloat16, and the CPU runs them."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:
        return False


@contextlib.contextmanager
def packed_convolutions(network: nn.Module) -> Iterator[int]:
    """Compute the frozen convolutions of a network with arranged weights within the block.

    Yields how many there are: none where the weights are not in bfloat16 on a CPU, or take too much memory.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d) and _fits(module)]
    size = 2 * sum(layer.weight.nbytes for layer in layers)
    packed = []
    try:
        for layer in layers if size <= MAX_BYTES and is_available() else []:
            if forward := _packed_forward(layer):
                layer.forward = forward  # type: ignore[method-assign, assignment]
                packed.append(layer)
        yield len(packed)
    finally:
        for layer in packed:
            del layer.forward


def _fits(layer: nn.Conv2d) -> bool:
    """Return True for a frozen layer in bfloat16 on the CPU whose input gradient is a convolution too."""
    weight = layer.weight
    is_frozen = not weight.requires_grad and (layer.bias is None or not layer.bias.requires_grad)
    return (
        is_frozen
        and type(weight.data) is torch.Tensor
        and (weight.device.type, weight.dtype, weight.ndim) == ("cpu", torch.bfloat16, 4)
        and weight.is_contiguous()
        and weight.nbytes >= MIN_BYTES
        and "forward" not in vars(layer)
        and (layer.groups, layer.padding_mode) == (1, "zeros")
        and tuple(layer.stride) == tuple(layer.dilation) == (1, 1)
        and not isinstance(layer.padding, str)
        and all(0 <= p < k for p, k in zip(layer.padding, layer.kernel_size, strict=True))
    )


def _packed_forward(layer: nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return the forward pass of a layer with arranged weights; None if a trial gives other bits."""
    padding: tuple[int, int] = layer.padding  # type: ignore[assignment]  # numbers, see _fits
    size: tuple[int, int] = layer.kernel_size  # type: ignore[assignment]
    weight, plain = layer.weight.detach(), layer.forward
    turned = weight.flip(2, 3).transpose(0, 1).contiguous()
    back = [k - 1 - p for k, p in zip(size, padding, strict=True)]
    try:
        weights = (_arrange(weight, list(padding)), _arrange(turned, back))
    except (RuntimeError, AttributeError):  # no kernel for this shape
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        if type(x) is not torch.Tensor or x.dtype != torch.bfloat16 or not x.is_contiguous() or not len(x):
            return plain(x)
        result: torch.Tensor = PackedConvolution.apply(x, weights, layer.bias, padding, size)
        return result

    return forward if _has_same_bits(plain, forward, layer.in_channels) else None


def _arrange(weight: torch.Tensor, padding: list[int]) -> torch.Tensor:
    """Arrange a weight for the kernels; not for one size of images, so that no order of images matters."""
    arranged: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, [1, 1], [1, 1], 1, None
    )
    return arranged


def _has_same_bits(
    plain: Callable[[torch.Tensor], torch.Tensor],
    packed: Callable[[torch.Tensor], torch.Tensor],
    channels: int,
) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, _TRIAL_SIDE, _TRIAL_SIDE, generator=generator).bfloat16().requires_grad_()
    results = []
    for compute in (plain, packed):
        with torch.enable_grad():
            output = compute(x)
            (gradient,) = torch.autograd.grad(output, x, output.detach().sin())
        results.append((output, gradient))
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(*results, strict=True))
