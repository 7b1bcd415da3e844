"""Activations that wait for the backward pass in host memory instead of on the device.

For a block that is recomputed these are its inputs, otherwise all that it saves. Copies run beside the
computation in both directions; in the backward pass the tensor that was saved before is fetched ahead.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lorakit.models.memory import tensor_places
from lorakit.models.memory.host_memory import TransferStream, has_streams

SMALLEST_BYTES = 4096
"""Smaller tensors stay on the device: moving them would cost more than it saves."""


class _HostCopy:
    """A saved tensor in host memory, and on the device again while the backward pass needs it."""

    def __init__(self, tensor: torch.Tensor, transfers: TransferStream, before: _HostCopy | None) -> None:
        self._transfers, self._device = transfers, tensor.device
        # autograd's graph keeps the copies alive; weak references leave nothing behind it
        self.before = None if before is None else weakref.ref(before)
        self._fetched: torch.Tensor | None = None
        self._in_use: weakref.ref[torch.Tensor] | None = None
        self._arrival: Any = None
        self._host = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, pin_memory=has_streams(tensor.device)
        )
        with transfers.after_computation():
            self._host.copy_(tensor, non_blocking=True)
        transfers.keep_until_copied(tensor)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._host.nbytes

    def fetch(self) -> None:
        """Start the transfer back to the device."""
        if self._fetched is not None or (self._in_use and self._in_use() is not None):
            return
        self._fetched = torch.empty_strided(
            self._host.shape, self._host.stride(), dtype=self._host.dtype, device=self._device
        )
        with self._transfers.after_computation():
            self._fetched.copy_(self._host, non_blocking=True)
        self._arrival = self._transfers.event()
        self._transfers.keep_until_copied(self._fetched)

    def get(self) -> torch.Tensor:
        """Return the tensor on the device; a later call returns the same one while it is in use."""
        tensor = self._in_use() if self._in_use else None
        if tensor is None:
            self.fetch()
            tensor = self._fetched
            assert tensor is not None
            self._transfers.wait(self._arrival)
            self._fetched, self._in_use = None, weakref.ref(tensor)
        return tensor


class ActivationOffload:
    """Hooks that keep the saved tensors of blocks in host memory."""

    def __init__(self, device: torch.device, weights: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Offload on `device`; `weights()` are the tensors that stay where they are."""
        self.device = device
        self.is_paused = False
        """True while shapes are counted: nothing is copied then, and what would be counts nothing."""
        self._weights = weights
        self._weight_storages: set[int] = set()
        self._in_backward = True
        self._transfers = TransferStream(device)
        self._newest: weakref.ref[_HostCopy] | None = None
        self._known: dict[Any, tuple[StorageWeakRef, weakref.ref[_HostCopy]]] = {}
        self.copied_bytes = 0
        """Bytes copied to host memory so far."""

    def hooks(self) -> Any:
        """Return a context in which all saved tensors are kept in host memory."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def live_copies(self) -> list[_HostCopy]:
        """Return the copies in host memory that a backward pass may still need."""
        copies = {id(copy): copy for _, known in self._known.values() if (copy := known()) is not None}
        return list(copies.values())

    def _pack(self, tensor: torch.Tensor) -> Any:
        if self._in_backward:
            self._begin_pass()
        if not self._is_offloaded(tensor):
            return tensor
        if self.is_paused or tensor.device.type == "meta":
            return None
        storage = tensor.untyped_storage()
        key = (
            storage._cdata, tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride(),
            tensor._version,
        )  # fmt: skip
        known = self._known.get(key)
        # an expired storage may have left its address to another one
        if known is not None and not known[0].expired() and (earlier := known[1]()) is not None:
            return earlier
        copy = _HostCopy(tensor, self._transfers, self._newest() if self._newest else None)
        self.copied_bytes += tensor.numel() * tensor.element_size()
        self._newest = weakref.ref(copy)
        # the weak reference to the storage keeps its address from being used again
        self._known[key] = StorageWeakRef(storage), weakref.ref(copy)
        return copy

    def _unpack(self, packed: Any) -> torch.Tensor:
        self._in_backward = True
        if not isinstance(packed, _HostCopy):
            tensor: torch.Tensor = packed
            return tensor
        tensor = packed.get()
        before = packed.before() if packed.before else None
        if before is not None:
            before.fetch()
        return tensor

    def _is_offloaded(self, tensor: torch.Tensor) -> bool:
        if tensor.device.type != self.device.type or isinstance(tensor, torch.nn.Parameter):
            return False
        if tensor.numel() * tensor.element_size() < SMALLEST_BYTES:
            return False
        if tensor.untyped_storage()._cdata in self._weight_storages:
            return False
        return tensor_places.is_dense(tensor)

    def _begin_pass(self) -> None:
        """Note where the weights are, and forget the copies that nothing refers to any more."""
        self._in_backward = False
        self._weight_storages = {weight.untyped_storage()._cdata for weight in self._weights()}
        self._known = {key: value for key, value in self._known.items() if value[1]() is not None}
