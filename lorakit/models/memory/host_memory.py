"""Host memory that a device can read and write by itself, and streams of transfers beside the computation.

Devices without streams (the CPU, the meta device) run the same code: transfers are plain copies there.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import torch

SHARED_MEMORY = ("cpu", "mps")
"""Device types whose memory is the main memory: what waits in host memory does not save any there."""


def has_streams(device: torch.device) -> bool:
    """Return True if transfers to a device can run beside its computation."""
    accelerator = torch.accelerator.current_accelerator()
    return device.type not in (*SHARED_MEMORY, "meta") and bool(
        accelerator and accelerator.type == device.type
    )


def pinned_bytes(count: int, device: torch.device) -> torch.Tensor:
    """Return `count` bytes of host memory (uint8), page-locked for a device with streams.

    On CUDA and ROCm the memory is registered instead of allocated as pinned, because torch rounds pinned
    allocations up to a power of two, which would cost up to as much again for each block of a network.
    """
    if device.type == "meta":
        return torch.empty(count, dtype=torch.uint8, device=device)
    if not has_streams(device):
        return torch.empty(count, dtype=torch.uint8)
    if device.type != "cuda" or not count:
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)
    buffer = torch.empty(count, dtype=torch.uint8)
    runtime, address = torch.cuda.cudart(), buffer.data_ptr()
    if int(runtime.cudaHostRegister(address, count, 0)):  # a limit of the system on locked memory
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=device)  # CUDA reports the error once more, here
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)
    # of the storage, because views of it outlive the tensor; at exit CUDA is gone before
    weakref.finalize(buffer.untyped_storage(), runtime.cudaHostUnregister, address).atexit = False
    return buffer


class TransferStream:
    """A side stream of a device: its copies wait for the computation so far, and run beside the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = torch.Stream(device=device) if has_streams(device) else None

    @contextlib.contextmanager
    def after_computation(self) -> Any:
        """Run the block's copies on the side stream, after everything that is queued on the device now."""
        if self._stream is None:
            yield
            return
        self._stream.wait_event(self._compute_stream().record_event())
        with self._stream:
            yield

    def event(self) -> Any:
        """Return an event that has happened once all copies so far are done; None without streams."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self, event: Any) -> None:
        """Let the computation that is queued from now on wait for an event; the host does not wait."""
        if event is not None:
            self._compute_stream().wait_event(event)

    def keep_until_copied(self, tensor: torch.Tensor) -> None:
        """Keep the memory of a freed device tensor until the copies so far have read it."""
        if self._stream is not None:
            tensor.record_stream(self._stream)

    def _compute_stream(self) -> Any:
        return torch.accelerator.current_stream(self.device)
