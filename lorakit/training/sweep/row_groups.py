"""The rows of several members in one batch, and layers of the base model that compute each row exactly as in
a batch of one member.

A library may choose another algorithm for a larger batch, whose results are rounded differently: on a CPU
some products of matrices and, for single images, convolutions. Each call is therefore tried once for its
shape, and where a bit differs, the layer computes the members' rows one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lorakit.core.errors import LorakitError

PROBED_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose algorithm depends on the size of the batch; norms and attention compute row by row."""

Forward = Callable[..., torch.Tensor]


class RowsNotSeparableError(LorakitError):
    """A tensor has no rows of its own for each member."""


@dataclass
class RowGroups:
    """The numbers of images of the members in the batch that is computed now, by member."""

    counts: tuple[int, ...] = ()
    members: tuple[int, ...] = ()
    """The number of the member of each entry of `counts`."""
    _parts: dict[int, tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = field(default_factory=dict)

    def select(self, counts: tuple[int, ...], members: tuple[int, ...]) -> None:
        """Set the rows of the next pass."""
        self.counts, self.members = counts, members
        self._parts.clear()

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the rows of each entry; the same tensors at every call of a pass.

        Layers that read the same input add up their gradients in the order of a single run only if they
        read the same part of it.
        """
        if id(tensor) not in self._parts:
            self._parts[id(tensor)] = (tensor, tensor.split(self.sizes(tensor)))
        return self._parts[id(tensor)][1]

    def sizes(self, tensor: torch.Tensor) -> list[int]:
        """Return how many rows (dimension 0) of a tensor belong to each entry, in their order.

        A tensor may have several rows for each image, such as its frames. Raises RowsNotSeparableError for
        one whose rows do not belong to images.
        """
        total = sum(self.counts)
        if not tensor.ndim or not total or len(tensor) % total:
            raise RowsNotSeparableError(
                f"a tensor of the shape {tuple(tensor.shape)} cannot be divided into {total} images"
            )
        factor = len(tensor) // total
        return [count * factor for count in self.counts]


class BaseLayer:
    """The forward pass of a layer of the base model on the rows of several members."""

    def __init__(self, layer: nn.Module, groups: RowGroups) -> None:
        """`groups` are the rows of the batch at the time of a call."""
        self.layer, self.groups = layer, groups
        self._forward: Forward = layer.forward
        self._is_equal: dict[tuple[Any, ...], bool] = {}

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output, each row with the bits that it has in its member's own batch."""
        if self._shares_algorithm(x):
            return self._forward(x, *args, **kwargs)
        parts = x.split(self.groups.sizes(x))
        return torch.cat([self._forward(part, *args, **kwargs) for part in parts])

    def _shares_algorithm(self, x: torch.Tensor) -> bool:
        if x.device.type != "cpu" or len(self.groups.counts) < 2 or not isinstance(self.layer, PROBED_LAYERS):
            return True
        key = (self.groups.counts, x.shape, x.stride(), x.dtype, x.requires_grad)
        if key not in self._is_equal:
            try:
                sizes = self.groups.sizes(x)
            except RowsNotSeparableError:  # an input that all members share
                return True
            self._is_equal[key] = self._compare(x, sizes)
        return self._is_equal[key]

    def _compare(self, x: torch.Tensor, sizes: Sequence[int]) -> bool:
        """Compare outputs and input gradients of the whole batch and of each member's part, on noise."""
        noise = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).normal_()
        parts = [part.clone(memory_format=torch.preserve_format) for part in noise.split(list(sizes))]
        outputs, gradients = self._run(noise, x.requires_grad)
        grad_parts = outputs.split([len(outputs) * size // len(x) for size in sizes])
        for part, output, gradient in zip(parts, grad_parts, gradients.split(list(sizes)), strict=True):
            own_output, own_gradient = self._run(part, x.requires_grad)
            if not (torch.equal(own_output, output) and torch.equal(own_gradient, gradient)):
                return False
        return True

    def _run(self, x: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output and, of its own values as gradient, the gradient of the input."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(with_gradient)
            output = self._forward(leaf)
            if with_gradient:
                (gradient,) = torch.autograd.grad(output, leaf, output.detach().sin())
            else:
                gradient = x
        return output.detach(), gradient
