"""Weights of frozen blocks that stay in host memory and visit the device one after the other, one way.

Each block has one device storage, whose memory exists only while the block is resident. The tensors that
autograd saves, also views and attributes of a quantized layer's own functions, refer to that storage: when
the block is loaded again for the backward pass, they are valid again. Nothing is ever copied back, because
frozen weights do not change. FSDP frees its gathered weights in the same way (arXiv:2304.11277).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import nn

from lorakit.core.errors import ConfigError
from lorakit.models.memory import tensor_places
from lorakit.models.memory.host_memory import TransferStream, pinned_bytes
from lorakit.models.memory.tensor_places import TensorPlace

RING_BLOCKS = 2
"""Streamed blocks on the device at once: the one that computes, and the one that is being transferred."""
_ALIGNMENT = 256  # bytes, as the allocators of devices align


class StreamedWeights:
    """The frozen tensors of one block: in one host buffer, and in one device storage while resident."""

    def __init__(self, places: Sequence[TensorPlace], device: torch.device) -> None:
        offsets, self.size = _layout(places)
        self.device = device
        self._host = pinned_bytes(self.size, device)
        flat = torch.empty(self.size, dtype=torch.uint8, device=device)
        self._storage = flat.untyped_storage()
        # its version counter is its own, so that a transfer does not change the tensors that autograd saved
        self._flat = flat.data
        self.views: list[tuple[TensorPlace, torch.Tensor, torch.Tensor]] = []
        for place in places:
            tensor = place.get()
            offset = offsets[tensor_places.storage_key(tensor)]
            host, on_device = (_view(buffer, offset, tensor) for buffer in (self._host, flat))
            host.copy_(tensor)
            self.views.append((place, host, on_device))
        self.is_resident = True
        self.release()

    def load(self, transfers: TransferStream) -> None:
        """Queue the transfer to the device."""
        self._storage.resize_(self.size)
        with torch.no_grad(), transfers.after_computation():
            self._flat.copy_(self._host, non_blocking=True)
        self.is_resident = True

    def use(self) -> None:
        """Let the block compute with the tensors on the device."""
        for place, _, on_device in self.views:
            place.set(on_device)

    def release(self) -> None:
        """Free the device's memory; the block then shows its tensors in host memory, which can be read."""
        for place, host, _ in self.views:
            place.set(host)
        self._storage.resize_(0)
        self.is_resident = False

    def show_shapes(self) -> None:
        """Let the block show tensors of the right shapes on the device that have no memory."""
        for place, host, _ in self.views:
            place.set(torch.empty((), dtype=host.dtype, device=self.device).expand(host.shape))


class WeightRing:
    """The streamed blocks of a network, of which at most `RING_BLOCKS` are on the device.

    Entering a block prefetches the one that followed it the last time, in forward and backward passes each:
    any order of execution is learned in one pass.
    """

    def __init__(
        self, modules: Sequence[nn.Module], device: torch.device, kept: Collection[int] = ()
    ) -> None:
        """Move the modules' frozen tensors to host memory, except in owners with an identity in `kept`."""
        self.blocks = [
            StreamedWeights([p for p in tensor_places.frozen_places(m) if id(p.owner) not in kept], device)
            for m in modules
        ]
        self._transfers = TransferStream(device)
        self._ready: dict[int, object] = {}  # event of the transfer, until the computation waits for it
        self._resident: list[int] = []  # oldest first
        count = len(self.blocks)
        self._next = {
            False: {index: index + 1 for index in range(count - 1)},
            True: {index: index - 1 for index in range(1, count)},
        }
        self._last: tuple[int, bool] | None = None
        self.transfers = 0
        self.peak_bytes = 0
        """Largest size of the resident blocks so far."""

    @property
    def largest_resident_bytes(self) -> int:
        """Size of the largest blocks that may be on the device at once."""
        return sum(sorted((block.size for block in self.blocks), reverse=True)[:RING_BLOCKS])

    def enter(self, index: int, *, backward: bool) -> None:
        """Make a block ready to compute in one direction, and start the transfer of the one that follows."""
        if self._last == (index, backward):
            return
        self._learn_order(index, backward)
        self._load(index, keep=index)
        self._transfers.wait(self._ready.pop(index, None))
        self.blocks[index].use()
        following = self._next[backward].get(index)
        if following is not None:
            self._load(following, keep=index)

    def _learn_order(self, index: int, backward: bool) -> None:
        if self._last is not None:
            before, was_backward = self._last
            if was_backward == backward:
                self._next[backward][before] = index
            else:  # a pass ends here: nothing follows
                self._next[was_backward].pop(before, None)
        self._last = index, backward

    def _load(self, index: int, keep: int) -> None:
        if index in self._resident:
            return
        while len(self._resident) >= RING_BLOCKS:
            self._evict(next(other for other in self._resident if other != keep))
        self.blocks[index].load(self._transfers)
        self._ready[index] = self._transfers.event()
        self._resident.append(index)
        self.transfers += 1
        self.peak_bytes = max(self.peak_bytes, sum(self.blocks[i].size for i in self._resident))

    def _evict(self, index: int) -> None:
        # a block that was fetched in vain: its memory must not be reused before it is written
        self._transfers.wait(self._ready.pop(index, None))
        self.blocks[index].release()
        self._resident.remove(index)

    def release_all(self) -> None:
        """Free the device's memory of all blocks; the next pass transfers them again."""
        for index in list(self._resident):
            self._evict(index)
        self._last = None

    def device_tensors(self) -> Iterator[torch.Tensor]:
        """Yield the tensors of all blocks on the device, without memory unless their block is resident."""
        for block in self.blocks:
            yield from (on_device for _, _, on_device in block.views)

    def show_shapes(self) -> None:
        """Let all blocks show shapes on the device, to count a pass on fake tensors."""
        self.release_all()
        for block in self.blocks:
            block.show_shapes()

    def show_host(self) -> None:
        """Undo `show_shapes`."""
        for block in self.blocks:
            block.release()


def _layout(places: Sequence[TensorPlace]) -> tuple[dict[tuple[object, ...], int], int]:
    """Return the offset of each tensor in a buffer of bytes, and the size of the buffer."""
    offsets: dict[tuple[object, ...], int] = {}
    size = 0
    for place in places:
        tensor = place.get()
        if type(tensor) not in (torch.Tensor, nn.Parameter) and not hasattr(tensor, "quant_state"):
            raise ConfigError(
                f"weights of the type {type(tensor).__name__} cannot be streamed",
                where="memory.stream",
                remedy="memory.stream=0",
            )
        key = tensor_places.storage_key(tensor)
        if key not in offsets:
            offsets[key] = size
            size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    return offsets, size


def _view(buffer: torch.Tensor, offset: int, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor like another one, in a buffer of bytes."""
    size = tensor.numel() * tensor.element_size()
    typed = buffer[offset : offset + size].view(tensor.dtype)
    if tensor_places.is_dense(tensor):
        return typed.as_strided(tensor.shape, tensor.stride())  # channels last stay channels last
    return typed.view(tensor.shape)
