"""Counts of a forward and backward pass by block: memory, operations, bytes moved, kernels.

The pass runs on fake tensors, which have shapes but no memory, so a network of any size is counted in seconds
and without weights. The family's own call of its network is counted, at one shape.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lorakit.planner.known_values import KnownValues, tensors_in

REST = ""
"""Name of the part of a network that is in no block."""
_NO_KERNEL: tuple[str, ...] = (
    "prim::",
    "aten::detach",
    "aten::alias",
    "aten::lift",
    "aten::empty",
    "aten::_unsafe_view",
)
_NO_KERNEL += ("aten::_local_scalar", "aten::sym_", "aten::new_empty", "aten::_reshape")


WorkspaceFn = Callable[[str, Any], tuple[int, int]]
"""Returns the bytes that an operation (name, arguments) allocates for itself: those that grow with the batch,
and those that are limited."""


@dataclass
class Work:
    """Work of one direction of a pass: operations by kind, bytes read and written by the rest, kernels."""

    linear: float = 0.0
    convolution: float = 0.0
    attention: float = 0.0
    moved_bytes: float = 0.0
    kernels: float = 0.0


@dataclass
class PassCount:
    """Counts of one block in a forward and backward pass for one image."""

    forward: Work = field(default_factory=Work)
    backward: Work = field(default_factory=Work)
    saved_bytes: int = 0
    """Activations that the forward pass keeps for the backward pass, without the block's inputs."""
    input_bytes: int = 0
    """Inputs of the block that no block before had: gradient checkpointing keeps them."""
    shared_bytes: int = 0
    """The part of the inputs that the peaks below include."""
    forward_peak_bytes: int = 0
    """Most memory of the block at once in the forward pass: what it keeps so far, and temporary tensors."""
    backward_peak_bytes: int = 0
    """The same in the backward pass: what is still kept, and gradients of activations."""
    attention_peak_bytes: int = 0
    """The same while an operation works that has a workspace."""
    workspace_bytes: int = 0
    """The bytes that this operation allocates for itself if the network computes in half precision."""


class PassMeter(TorchDispatchMode):
    """Counts all operations below it by block.

    `block` says where the pass is, `is_backward` in which half.
    """

    def __init__(self, resident: Collection[int], workspace: WorkspaceFn | None = None) -> None:
        super().__init__()
        self._workspace = workspace
        self._known = KnownValues()
        self.counts: dict[str, PassCount] = {}
        self.block, self.is_backward = REST, False
        self._resident = resident
        """Storages of weights, which are not activations."""
        self._sizes: dict[int, int] = {}
        self._live = 0
        self._saved: dict[int, tuple[str, int]] = {}
        self._saved_live: dict[str, int] = {}
        self._all_saved = 0
        self._block_inputs: set[int] = set()

    def count(self, block: str) -> PassCount:
        """Return the counts of a block."""
        return self.counts.setdefault(block, PassCount())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        result = self._known.execute(func, args, kwargs or {})
        name = func._schema.name
        if func.is_view or name.startswith("prim::"):
            return result
        if not name.startswith(_NO_KERNEL):
            self._count_work(func, name, args, kwargs or {}, result)
        for tensor in tensors_in(result):
            self._track(tensor)
        self._count_peak(*(self._workspace(name, args) if self._workspace else (0, 0)))
        return result

    def _count_work(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        count = self.count(self.block)
        work = count.backward if self.is_backward else count.forward
        work.kernels += 1
        if counter := flop_registry.get(func._overloadpacket):
            operations = counter(*args, **kwargs, out_val=result)
            if "attention" in name:
                work.attention += operations
            elif "convolution" in name:
                work.convolution += operations
            else:
                work.linear += operations
        else:
            moved = (*tensors_in(args), *tensors_in(kwargs), *tensors_in(result))
            work.moved_bytes += sum(t.numel() * t.element_size() for t in moved)

    def _track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes and key not in self._resident:
            self._sizes[key] = size = storage.nbytes()
            self._live += size
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._live -= self._sizes.pop(key, 0)
        if key in self._saved:
            block, size = self._saved.pop(key)
            self._saved_live[block] -= size
            self._all_saved -= size
        self._block_inputs.discard(key)

    def _count_peak(self, growing: int, limited: int) -> None:
        count = self.count(self.block)
        own = self._live - self._all_saved + self._saved_live.get(self.block, 0) + growing
        if not self.is_backward:
            count.forward_peak_bytes = max(count.forward_peak_bytes, own)
            return
        count.backward_peak_bytes = max(count.backward_peak_bytes, own)
        if own + limited > count.attention_peak_bytes + count.workspace_bytes and limited:
            count.attention_peak_bytes, count.workspace_bytes = own, limited

    def exclude(self, parameter: torch.Tensor) -> None:
        """Count the gradient of a parameter, which stays, no longer as an activation."""
        if parameter.grad is not None:
            self._free(parameter.grad.untyped_storage()._cdata)

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count an activation that autograd keeps, once for each storage."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes and key not in self._saved:
            size = self._sizes[key]
            self._saved[key] = self.block, size
            self._saved_live[self.block] = self._saved_live.get(self.block, 0) + size
            self._all_saved += size
            self.count(self.block).saved_bytes += size
        return tensor

    def move_to(self, block: str) -> None:
        """Count for this block from now on."""
        self.block = block

    def enter(self, block: str, inputs: Any) -> None:
        """Enter a block in the forward pass."""
        self.move_to(block)
        count = self.count(block)
        for tensor in tensors_in(inputs):
            key = tensor.untyped_storage()._cdata
            if key in self._sizes and key not in self._block_inputs:
                self._block_inputs.add(key)
                count.input_bytes += self._sizes[key]
                count.shared_bytes += 0 if key in self._saved else self._sizes[key]


def count_pass(
    blocks: Mapping[str, nn.Module],
    forward: Callable[[], torch.Tensor],
    parameters: Collection[torch.Tensor],
    inputs: Collection[torch.Tensor],
    workspace: WorkspaceFn | None = None,
) -> dict[str, PassCount]:
    """Run `forward()`, which returns a scalar loss, and its backward pass; return counts by block.

    Call it in a fake tensor mode. `parameters` are the network's weights.
    """
    meter = PassMeter({t.untyped_storage()._cdata for t in (*parameters, *inputs)}, workspace)
    with contextlib.ExitStack() as stack:
        for parameter in parameters:
            if parameter.requires_grad:
                stack.callback(parameter.register_post_accumulate_grad_hook(meter.exclude).remove)
        stack.enter_context(observed_blocks(meter, blocks))
        stack.enter_context(meter)
        with torch.autograd.graph.saved_tensors_hooks(meter.save, lambda tensor: tensor):
            loss = forward()
        meter.is_backward, meter.block = True, REST
        loss.backward()
    return meter.counts


class PassObserver(Protocol):
    """An observer of the block that a pass is in."""

    def enter(self, block: str, inputs: Any) -> None:
        """Enter a block in the forward pass."""

    def move_to(self, block: str) -> None:
        """Go on in a block, in either direction."""


@contextlib.contextmanager
def observed_blocks(observer: PassObserver, blocks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Tell an observer when a pass enters and leaves a block, in both directions."""
    with contextlib.ExitStack() as stack:
        for name, block in blocks.items():
            for handle in _block_hooks(observer, name, block):
                stack.callback(handle.remove)
        yield


def _block_hooks(observer: PassObserver, name: str, block: nn.Module) -> list[Any]:
    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        observer.enter(name, (args, kwargs))

    def enter_backward(gradient: torch.Tensor) -> None:
        observer.move_to(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        observer.move_to(REST)
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(enter_backward)

    before = block.register_forward_pre_hook(enter, with_kwargs=True)
    return [before, block.register_forward_hook(leave)]
