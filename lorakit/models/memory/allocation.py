"""Errors of memory that ran out, the device's cache of free blocks, and sizes in words."""

from __future__ import annotations

import errno
import re
from typing import Any

import torch

_ALLOCATION_ERROR = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|alloc_?failed|bad_?alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that the memory of a device or of the machine ran out.

    PyTorch has a class for devices with an allocator of its own. Main memory, Apple's GPUs and libraries
    that allocate by themselves (cuBLAS, cuDNN) are known by the text of a RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_ALLOCATION_ERROR.search(str(error)))


def format_bytes(count: float) -> str:
    """Format as GiB with two decimals, or as MiB or KiB if it is less."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def empty_device_cache(device: Any) -> None:
    """Return cached blocks to the device, such as after a failed allocation; nothing on a CPU."""
    if torch.device(device).type != "cpu":
        torch.accelerator.empty_cache()
