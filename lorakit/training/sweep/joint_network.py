"""One network that computes the denoiser's calls of several members together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from lorakit import adapters
from lorakit.adapters.injection import peft_layers
from lorakit.training.sweep.grouped_layers import AdaptedLayer
from lorakit.training.sweep.row_groups import PROBED_LAYERS, BaseLayer, RowGroups, RowsNotSeparableError


class Call:
    """One call of a member's denoiser: its arguments, whose tensors have the images in dimension 0."""

    def __init__(
        self, member: int, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_first_step: bool = False
    ) -> None:
        """`is_first_step` is True while the member's adapter has no effect yet."""
        self.member, self.is_first_step = member, is_first_step
        self.leaves, self.structure = pytree.tree_flatten((args, kwargs))
        self.num_images = len(self.leaves[0])
        self.output: Any = None
        self.predictions: list[torch.Tensor] = []
        """The tensors of `output`, whose gradients the member's loss computes."""

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of one image's latents, timestep and conditioning."""
        return tuple(tuple(leaf.shape[1:]) for leaf in self.leaves if self.has_rows(leaf))

    def can_join(self, other: Call) -> bool:
        """Return True if the rows of both calls can be computed in one batch."""
        if self.structure != other.structure:
            return False
        return all(
            self._matches(own, value, other) for own, value in zip(self.leaves, other.leaves, strict=True)
        )

    def _matches(self, own: Any, value: Any, other: Call) -> bool:
        if not isinstance(own, torch.Tensor) or not isinstance(value, torch.Tensor):
            return bool(own == value)
        if self.has_rows(own) and other.has_rows(value):
            return own.shape[1:] == value.shape[1:] and own.dtype == value.dtype
        return own is value or (own.shape == value.shape and torch.equal(own, value))

    def has_rows(self, leaf: Any) -> bool:
        """Return True for a tensor with a row for each image; others hold for all images."""
        return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == self.num_images


class JointNetwork:
    """A shared copy of the denoiser whose layers apply each member's adapter to its own rows."""

    def __init__(self, network: nn.Module, members: Sequence[nn.Module]) -> None:
        """`network` is a shared copy without adapters, which is changed; `members` are the members' own."""
        self.network, self.members, self.groups = network, list(members), RowGroups()
        adapted: dict[str, dict[int, nn.Module]] = {}
        for number, member in enumerate(members):
            layers = set(peft_layers(member))
            for name, module in member.named_modules():
                if module in layers:
                    adapted.setdefault(name, {})[number] = module
        for name, layer in network.named_modules():
            forward: BaseLayer | None = None
            if name in adapted:
                forward = AdaptedLayer(layer, self.groups, adapted[name])
            elif type(layer) in PROBED_LAYERS:
                forward = BaseLayer(layer, self.groups)
            if forward is not None:
                layer.forward = forward  # of this copy only
        self._separate: set[tuple[Any, ...]] = set()
        self._compared: set[tuple[Any, ...]] = set()

    def forward(self, calls: Sequence[Call]) -> JointPass:
        """Compute calls that can be joined; each gets its output, whose tensors are leaves of autograd.

        On a CPU each combination of shapes is compared once with the members' own networks, bit by bit; one
        that differs is computed member by member from then on.
        """
        key = (calls[0].shape, tuple((call.member, call.num_images) for call in calls))
        if len(calls) == 1 or key in self._separate:
            return JointPass(self, calls, self._run_separately(calls))
        is_exact = calls[0].leaves[0].device.type == "cpu"
        if is_exact and any(call.is_first_step for call in calls):  # differences would be multiplied by zero
            return JointPass(self, calls, self._run_separately(calls))
        try:
            if is_exact and key not in self._compared:
                self._compared.add(key)
                if not self._equals_members(calls):
                    self._separate.add(key)
                    return JointPass(self, calls, self._run_separately(calls))
            return JointPass(self, calls, [self._run_joined(calls)])
        except RowsNotSeparableError:
            self._separate.add(key)
            return JointPass(self, calls, self._run_separately(calls))

    @property
    def num_separate(self) -> int:
        """The number of combinations that are computed member by member."""
        return len(self._separate)

    def select(self, calls: Sequence[Call]) -> None:
        """Declare whose rows the layers compute, also again in the backward pass of a checkpointed block."""
        self.groups.select(tuple(call.num_images for call in calls), tuple(call.member for call in calls))

    def _run_joined(self, calls: Sequence[Call]) -> _Output:
        self.select(calls)
        inputs: list[list[torch.Tensor | None]] = [[] for _ in calls]
        leaves = []
        for position, first in enumerate(calls[0].leaves):
            values = [call.leaves[position] for call in calls]
            if calls[0].has_rows(first):
                own = [_detached(value) for value in values]
                for entry, value in zip(inputs, own, strict=True):
                    entry.append(value if value.requires_grad else None)
                leaves.append(torch.cat(own))
            else:
                leaves.append(first)
        args, kwargs = pytree.tree_unflatten(leaves, calls[0].structure)
        return _Output(self.network(*args, **kwargs), [call.num_images for call in calls], inputs)

    def _run_separately(self, calls: Sequence[Call]) -> list[_Output]:
        outputs = []
        for call in calls:
            own = [_detached(leaf) if call.has_rows(leaf) else leaf for leaf in call.leaves]
            args, kwargs = pytree.tree_unflatten(own, call.structure)
            inputs = [
                leaf if leaf.requires_grad else None
                for leaf, value in zip(own, call.leaves, strict=True)
                if call.has_rows(value)
            ]
            result = self.members[call.member](*args, **kwargs)
            outputs.append(_Output(result, [call.num_images], [inputs]))
        return outputs

    def _equals_members(self, calls: Sequence[Call]) -> bool:
        """Compare outputs and gradients of a joined call with those of each member's own network."""
        results = []
        for outputs in ([self._run_joined(calls)], self._run_separately(calls)):
            tensors = [t for output in outputs for part in output.split() for t in part]
            gradients = [tensor.detach().sin() for tensor in tensors]
            parameters = [
                p for call in calls for _, p in adapters.trainable_parameters(self.members[call.member])
            ]
            own = torch.autograd.grad(tensors, parameters, gradients, allow_unused=True)
            results.append([*tensors, *own])
        return all(
            first is second or (first is not None and second is not None and torch.equal(first, second))
            for first, second in zip(*results, strict=True)
        )


class _Output:
    """The result of a network for the rows of some calls, and the inputs that need a gradient."""

    def __init__(self, result: Any, counts: list[int], inputs: list[list[torch.Tensor | None]]) -> None:
        self.leaves, self.structure = pytree.tree_flatten(result)
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        self.counts, self.inputs = counts, inputs

    def split(self) -> list[list[torch.Tensor]]:
        """Return the tensors of each call."""
        parts = [tensor.split(self.counts) for tensor in self.tensors]
        return [list(own) for own in zip(*parts, strict=True)]


class JointPass:
    """A forward pass of some calls that waits for the gradients of its outputs."""

    def __init__(self, network: JointNetwork, calls: Sequence[Call], outputs: list[_Output]) -> None:
        self.network, self.calls, self.outputs = network, list(calls), outputs
        remaining = iter(calls)
        for output in outputs:
            for own in output.split():
                call = next(remaining)
                call.predictions = [tensor.detach().requires_grad_() for tensor in own]
                values = iter(call.predictions)
                leaves = [next(values) if isinstance(leaf, torch.Tensor) else leaf for leaf in output.leaves]
                call.output = pytree.tree_unflatten(leaves, output.structure)

    def backward(self) -> None:
        """Compute the gradients of all adapters, and of inputs that need one, from those of the outputs."""
        self.network.select(self.calls)
        remaining = iter(self.calls)
        for output in self.outputs:
            calls = [next(remaining) for _ in output.counts]
            gradients = []
            for position, tensor in enumerate(output.tensors):
                own = [_gradient(call.predictions[position]) for call in calls]
                gradients.append(torch.cat(own) if len(own) > 1 else own[0].view_as(tensor))
            torch.autograd.backward(output.tensors, gradients)
            for call, inputs in zip(calls, output.inputs, strict=True):
                _backward_inputs(call, inputs)


def _backward_inputs(call: Call, inputs: Sequence[torch.Tensor | None]) -> None:
    """Continue the backward pass in what computed a call's inputs, such as a trained text encoder."""
    leaves = [leaf for leaf in call.leaves if call.has_rows(leaf)]
    pairs = [
        (leaf, value.grad)
        for leaf, value in zip(leaves, inputs, strict=True)
        if value is not None and value.grad is not None
    ]
    if pairs:
        torch.autograd.backward([leaf for leaf, _ in pairs], [gradient for _, gradient in pairs])


def _detached(value: torch.Tensor) -> torch.Tensor:
    return value.detach().requires_grad_() if value.requires_grad else value


def _gradient(prediction: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a prediction; zero if its member has failed before it computed one."""
    return torch.zeros_like(prediction) if prediction.grad is None else prediction.grad
