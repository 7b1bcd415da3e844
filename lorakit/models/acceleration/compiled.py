"""Compilation of a denoiser's repeated blocks by `torch.compile`, at the exact shapes of the training.

One block of a kind is compiled for each shape, and all others of that kind use the same code, so that it
takes a minute and not an hour. Shapes are never generalized: the code for a shape must not depend on which
shapes came before it, or a resumed run would compute other numbers than an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lorakit.models.memory.blocks import repeated_blocks
from lorakit.models.memory.placement import PlacedBlock, placement_of

MAX_VERSIONS = 256
"""Versions of one kind of block (shapes, widths, with and without adapter) above which compiling fails."""


def compile_problem(device: torch.device) -> str | None:
    """Return why blocks cannot be compiled for a device on this machine; None if they can.

    A CPU needs a C++ compiler; GPUs need Triton, which NVIDIA's, AMD's and Intel's have, and which on Windows
    is a package of its own.
    """
    if device.type == "cpu":
        return _cpp_compiler_problem()
    if device.type not in ("cuda", "xpu"):
        return f"torch does not compile for this device ({device.type})"
    from torch.utils import _triton

    if not _triton.has_triton_package():
        package = " (on Windows it is the package triton-windows)" if sys.platform == "win32" else ""
        return f"the package triton is not installed{package}"
    if not _triton.has_triton():
        return "Triton does not support this GPU"
    return None


def _cpp_compiler_problem() -> str | None:
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "no C++ compiler is installed (on Windows cl, elsewhere g++ or clang)"
    return None


class CompiledBlocks:
    """The compiled forward passes of a network's repeated blocks, which run only inside `active`.

    Validation, samples and estimates run as without compilation: they have other shapes.
    """

    def __init__(self, network: nn.Module) -> None:
        self._forwards: list[tuple[Any, Callable[..., Any]]] = []
        placed = placement_of(network)
        if placed and placed.modulation:
            placed.modulation.exclude_from_compilation()
        for block in repeated_blocks(network):
            owner = _forward_owner(block.module)
            compiled = torch.compile(owner.forward, dynamic=False, options={"deterministic": True})
            self._forwards.append((owner, compiled))

    def __len__(self) -> int:
        return len(self._forwards)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Run the compiled code within the block, in backward passes too. May be nested."""
        from torch._dynamo import config

        before = [vars(owner).get("forward") for owner, _ in self._forwards]
        for owner, compiled in self._forwards:
            owner.forward = compiled
        try:
            with config.patch(
                recompile_limit=MAX_VERSIONS,
                accumulated_recompile_limit=16 * MAX_VERSIONS,
                fail_on_recompile_limit_hit=True,
            ):
                yield
        finally:
            for (owner, _), forward in zip(self._forwards, before, strict=True):
                if forward is None:
                    del owner.forward
                else:
                    owner.forward = forward


def _forward_owner(block: nn.Module) -> Any:
    """Return the object whose `forward` computes a block, inside what its memory settings wrap around it."""
    wrapper = vars(block).get("forward")
    return wrapper if isinstance(wrapper, PlacedBlock) else block
