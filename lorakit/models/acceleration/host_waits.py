"""Operations in a pass through a network that make the host wait for the device, counted by dispatch.

A CUDA graph cannot record them, and without a graph the device has nothing to do after each of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave.Tensor",
}
"""Operations whose result, or the shape of it, the host must know."""


class HostWaits(TorchDispatchMode):
    """Collect the operations that wait, each with the line of code that calls it; `found` maps one to counts.

    It sees the same on a CPU: what would wait there is an operation whose result depends on values of
    tensors. Copies between host and device are seen where the tensors are on two devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _waits(func, args, result):
            key = f"{func._schema.name.removeprefix('aten::')} in {_caller()}"
            self.found[key] = self.found.get(key, 0) + 1
        return result


def _waits(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    name, overload = func._schema.name, func._schema.overload_name
    if name in _READS or f"{name}.{overload}" in _READS:
        return True
    if name in ("aten::index.Tensor", "aten::index", "aten::index_put_", "aten::index_put"):
        indices = args[1] or ()
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
    if name in ("aten::_to_copy", "aten::copy_"):
        source = args[1] if name == "aten::copy_" else args[0]
        target = args[0] if name == "aten::copy_" else result
        return _is_pageable_copy(source, target)
    return False


def _is_pageable_copy(source: torch.Tensor, target: torch.Tensor) -> bool:
    if source.device.type == target.device.type:
        return False
    host = source if source.device.type == "cpu" else target
    return host.device.type == "cpu" and not host.is_pinned()


def _caller() -> str:
    """Return file and line of the innermost code outside of torch."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename.replace("\\", "/") and frame.filename != __file__:
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "torch"


def find_host_waits(work: Callable[[], object]) -> list[str]:
    """Return the operations of `work()` that wait, such as `nonzero in unpadded.py:87`."""
    with HostWaits() as waits:
        work()
    return sorted(waits.found)
