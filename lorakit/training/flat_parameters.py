"""The trainable parameters of a run as views of one buffer, and their gradients as views of another.

An adapter has hundreds of small tensors. In one buffer, the norm, the clipping, the reduction over processes
and the optimizer are one call each, whatever the number of tensors.

Where a network computes in half precision, its parameters are copies in that precision, in a buffer of the
same layout: the optimizer works on the values in float32, and each step ends with one call that rounds them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

NamedParameters = Sequence[tuple[str, nn.Parameter]]
ALIGNMENT = 256
"""Every parameter starts at a multiple of this many elements: the size of a block of 8-bit optimizers, so
that none holds elements of two parameters, and each parameter is trained as if it were alone."""


@dataclass(frozen=True)
class Member:
    """One parameter of an `OptimizerTensor`, which starts at its element `start`."""

    name: str
    shape: torch.Size
    start: int

    @property
    def elements(self) -> slice:
        """The parameter's elements."""
        return slice(self.start, self.start + self.shape.numel())

    @property
    def blocks(self) -> slice:
        """The parameter's blocks of `ALIGNMENT` elements, the last one padded with zeros."""
        return slice(self.start // ALIGNMENT, self.start // ALIGNMENT + _num_blocks(self.shape.numel()))


@dataclass(frozen=True)
class OptimizerTensor:
    """One tensor that the optimizer updates: all parameters of a network that share a learning rate, flat;
    or a single parameter in its own shape, for optimizers that do not work element by element.
    """

    values: nn.Parameter
    gradients: torch.Tensor
    members: tuple[Member, ...]
    network: str
    lr_multiplier: float


class FlatParameters:
    """Trainable parameters, in buffers of float32 that the optimizer works on.

    The parameters of the model become views in place: of `values`, or of copies in the data type that
    `dtype_of` gives for a parameter. `network_of` gives the network of a name: a network without gradients in
    a step, such as the expert of other timesteps, is not updated in it.
    """

    def __init__(
        self,
        parameters: NamedParameters,
        network_of: Callable[[str], str] = lambda name: "",
        lr_multiplier: Callable[[str], float] = lambda name: 1.0,
        *,
        dtype_of: Callable[[nn.Parameter], torch.dtype] = lambda parameter: torch.float32,
        per_tensor: bool = False,
    ) -> None:
        self.named, self.per_tensor = list(parameters), per_tensor
        self.networks = list(dict.fromkeys(network_of(name) for name, _ in self.named))
        self._active = dict.fromkeys(self.networks, False)
        self._network_of = [network_of(name) for name, _ in self.named]
        keys = [(network_of(name), lr_multiplier(name)) for name, _ in self.named]
        groups = _group_indices(keys)
        order = [index for group in groups for index in group]
        self._starts = [0] * len(keys)
        end = 0
        for i in order:
            self._starts[i] = end
            end += ALIGNMENT * _num_blocks(self.named[i][1].numel())
        device = self.named[0][1].device
        self.values = torch.zeros(end, device=device)
        # the first block holds the numbers that processes exchange beside the gradients
        self._exchanged = torch.zeros(ALIGNMENT + end, device=device)
        self.gradients = self._exchanged[ALIGNMENT:]
        self._gradient_views = [self._view(self.gradients, i) for i in range(len(keys))]
        self._copies: dict[torch.dtype, torch.Tensor] = {}
        self._take_over_values(dtype_of)
        self.tensors = [
            self._optimizer_tensor(group, keys[group[0]], flat=not per_tensor)
            for group in ([[index] for index in order] if per_tensor else groups)
        ]

    def _view(self, buffer: torch.Tensor, index: int) -> torch.Tensor:
        parameter, start = self.named[index][1], self._starts[index]
        return buffer[start : start + parameter.numel()].view(parameter.shape)

    def _take_over_values(self, dtype_of: Callable[[nn.Parameter], torch.dtype]) -> None:
        self._masters, self._computed = [], []
        for index, (_, parameter) in enumerate(self.named):
            dtype, view = dtype_of(parameter), self._view(self.values, index)
            view.copy_(parameter.detach())
            self._masters.append(view)
            if dtype != torch.float32:
                copies = self._copies.setdefault(dtype, torch.zeros_like(self.values, dtype=dtype))
                view = self._view(copies, index)
            self._computed.append(view)
        self._set_data(self._computed)
        self.refresh_copies()

    def _set_data(self, views: Sequence[torch.Tensor]) -> None:
        for (_, parameter), view in zip(self.named, views, strict=True):
            parameter.data, parameter.grad = view, None

    def refresh_copies(self) -> None:
        """Round the values into the copies that the networks compute with; to do after values change."""
        for copies in self._copies.values():
            copies.copy_(self.values)

    @contextlib.contextmanager
    def in_full_precision(self) -> Iterator[None]:
        """Let the parameters of the networks be the values in float32 within the block, to save or load."""
        if not self._copies:
            yield
            return
        self._set_data(self._masters)
        try:
            yield
        finally:
            self._set_data(self._computed)
            self.refresh_copies()

    def _optimizer_tensor(self, group: list[int], key: tuple[str, float], *, flat: bool) -> OptimizerTensor:
        start, last = self._starts[group[0]], group[-1]
        end = self._starts[last] + ALIGNMENT * _num_blocks(self.named[last][1].numel())
        members = tuple(
            Member(self.named[i][0], self.named[i][1].shape, self._starts[i] - start) for i in group
        )
        if flat:
            values, gradients = self.values[start:end], self.gradients[start:end]
        else:
            values, gradients = self._view(self.values, last), self._gradient_views[last]
        return OptimizerTensor(nn.Parameter(values), gradients, members, *key)

    def named_views(self, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the part of each parameter, in its shape, of a buffer that is laid out like `values`."""
        return ((name, self._view(buffer, index)) for index, (name, _) in enumerate(self.named))

    def gradient_views(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the gradient of each parameter, in its shape, by name."""
        return ((name, view) for (name, _), view in zip(self.named, self._gradient_views, strict=True))

    def add_gradients(self) -> None:
        """Add the gradients of a backward pass to the buffer, and remove them from the parameters."""
        first = not any(self._active.values())
        indices, gradients = [], []
        for index, (_, parameter) in enumerate(self.named):
            if parameter.grad is not None:
                indices.append(index)
                gradients.append(parameter.grad)
                self._active[self._network_of[index]] = True
                parameter.grad = None
        if not indices:
            return
        views = [self._gradient_views[index] for index in indices]
        if first:
            torch._foreach_copy_(views, gradients)
        elif not self._copies:
            torch._foreach_add_(views, gradients)
        else:  # sums of two data types would be a kernel for each tensor
            added = torch.zeros_like(self.gradients)
            torch._foreach_copy_([self._view(added, index) for index in indices], gradients)
            self.gradients.add_(added)

    def mark_active(self) -> None:
        """Note that gradients are in the buffer already, of all networks."""
        self._active = dict.fromkeys(self.networks, True)

    def zero_gradients(self) -> None:
        """Forget all gradients, also those of a backward pass that was not finished."""
        self._exchanged.zero_()
        self._active = dict.fromkeys(self.networks, False)
        for _, parameter in self.named:
            parameter.grad = None

    def exchange_gradients(
        self, loss: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Average the gradients and a loss (scalar) over processes with `mean`; returns the mean loss.

        A network is active afterwards if it was active in any process.
        """
        self._exchanged[0] = loss
        flags = [float(active) for active in self._active.values()]
        if len(flags) > 1:  # a single network is active everywhere, and nothing has to be read
            self._exchanged[1 : 1 + len(flags)] = torch.tensor(flags, device=loss.device)
        self._exchanged.copy_(mean(self._exchanged))
        if len(flags) > 1:
            averaged = self._exchanged[1 : 1 + len(flags)].tolist()
            self._active = {name: value > 0 for name, value in zip(self.networks, averaged, strict=True)}
        return self._exchanged[0].clone()

    def clip_gradients(self, max_norm: float, scale: float = 1.0) -> torch.Tensor:
        """Divide the gradients by `scale`, then limit their norm; returns the norm before the limit."""
        if scale != 1.0:
            self.gradients.div_(scale)
        norm = torch.linalg.vector_norm(self.gradients)
        self.gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def attach_gradients(self) -> None:
        """Give the optimizer's tensors their gradients, except those of networks without any."""
        for tensor in self.tensors:
            tensor.values.grad = tensor.gradients if self._active[tensor.network] else None


def _num_blocks(numel: int) -> int:
    return max(1, math.ceil(numel / ALIGNMENT))


def _group_indices(keys: Sequence[tuple[str, float]]) -> list[list[int]]:
    """Group indices by their key (network, multiplier of the learning rate).

    Those of multiplier 1 come first, whose rate is logged as the run's.
    """
    groups: dict[tuple[str, float], list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [groups[key] for key in sorted(groups, key=lambda key: key[1] != 1.0)]
