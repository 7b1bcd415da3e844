"""Kernels of a device, chosen by the time that a training step takes with each of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorakit.core.errors import first_line
from lorakit.models import memory
from lorakit.models.acceleration.settings import Kernels

_REST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
ATTENTION_ORDER: dict[str, list[SDPBackend] | None] = {
    "default": None,
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}
"""The implementation to try first; the others follow for inputs that it does not support, such as masks."""
MIN_GAIN = 0.03  # share of the time that another kernel must save: less is within the error of measurement
MEASURED_SECONDS = 1.5  # of each candidate, but at least one step
_MIN_CONVOLUTIONS = 8  # a patch embedding or two gain nothing from another memory format


@dataclass(frozen=True)
class Measurement:
    """The time of one training step with some kernels; None, with the reason, if they cannot be used."""

    kernels: Kernels
    seconds: float | None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as plain values."""
        values: dict[str, Any] = {**asdict(self.kernels), "seconds": self.seconds}
        return values | ({"problem": self.problem} if self.problem else {})


def alternatives(
    best: Kernels, network: nn.Module, device: torch.device, *, precision: str, movable: bool
) -> list[Callable[[Kernels], Kernels]]:
    """Return the changes to try, one after the other: those that exist on a device for a network.

    `movable` is False if the weights must keep their memory format, because they are streamed.
    """
    names = {"cuda": ["cudnn", "flash", "efficient"], "cpu": ["math"], "xpu": ["flash", "math"]}
    changes: list[Callable[[Kernels], Kernels]] = [
        lambda kernels, name=name: replace(kernels, attention=name)  # type: ignore[misc]
        for name in names.get(device.type, [])
        if name != best.attention
    ]
    if movable and len(list(_frozen_convolutions(network))) >= _MIN_CONVOLUTIONS:
        changes.append(lambda kernels: replace(kernels, channels_last=True))
    if device.type == "cuda" and precision != "fp32":
        changes.append(lambda kernels: replace(kernels, tf32=True))
    return changes


def choose_kernels(
    step: Callable[[], object],
    network: nn.Module,
    device: torch.device,
    *,
    precision: str,
    movable: bool = True,
) -> tuple[Kernels, list[Measurement]]:
    """Return the fastest kernels for a training step, and all that was measured.

    One setting is changed at a time, and stays if it saves at least 3 %.
    """
    best = Kernels()
    measured = [measure(step, network, device, best)]
    for change in alternatives(best, network, device, precision=precision, movable=movable):
        result = measure(step, network, device, change(best))
        measured.append(result)
        fastest = next(m.seconds for m in measured if m.kernels == best)
        if result.seconds is not None and fastest is not None:
            best = result.kernels if result.seconds < (1 - MIN_GAIN) * fastest else best
    return best, measured


def measure(
    step: Callable[[], object], network: nn.Module, device: torch.device, kernels: Kernels
) -> Measurement:
    """Time a step with some kernels: the fastest of several, after one that is not counted."""
    try:
        with kernels_in_force(kernels, network):
            seconds = _fastest(step, device)
    except (RuntimeError, MemoryError) as error:  # a kernel that this device or these inputs do not support
        if memory.is_out_of_memory(error):
            memory.empty_device_cache(device)
        return Measurement(kernels, None, first_line(error))
    return Measurement(kernels, round(seconds, 6))


def _fastest(step: Callable[[], object], device: torch.device) -> float:
    step()
    _wait(device)
    times: list[float] = []
    while not times or (sum(times) < MEASURED_SECONDS and len(times) < 5):
        start = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def kernels_in_force(kernels: Kernels, network: nn.Module) -> Iterator[None]:
    """Compute with these kernels within the block, in backward passes too; afterwards as before."""
    first = ATTENTION_ORDER[kernels.attention]
    with contextlib.ExitStack() as stack:
        if first is not None:
            # the implementation without restrictions comes last: alone, it would be used by itself on a CPU
            rest = [backend for backend in _REST if backend not in first] if first != [_REST[-1]] else []
            stack.enter_context(sdpa_kernel([*first, *rest], set_priority=True))
        if kernels.channels_last:
            stack.enter_context(_channels_last(network))
        if kernels.tf32:
            stack.enter_context(_tf32())
        yield


def _frozen_convolutions(network: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the weights of two-dimensional convolutions that are not trained.

    Trained ones are views of one buffer, which has the layout of the adapter's files.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.requires_grad and module.weight.ndim == 4:
            yield module.weight


@contextlib.contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    """Keep frozen convolutions in this format: what they return has it too, up to the end of the network."""
    weights = list(_frozen_convolutions(network))
    _set_format(weights, torch.channels_last)
    try:
        yield
    finally:
        _set_format(weights, torch.contiguous_format)


def _set_format(weights: list[torch.Tensor], memory_format: torch.memory_format) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=memory_format)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
