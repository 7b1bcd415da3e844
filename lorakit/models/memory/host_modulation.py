"""Modulation layers (AdaLN) in host memory: they see one vector a sample and no tokens.

In a large transformer they hold a quarter to a third of the weights and do a thousandth of the work. The
vector goes to the host, and the shifts, scales and gates that are computed from it come back.

The layers of a network that see the same vector are learned in its first pass. Later, when the first of them
is called, a thread of the host computes all of them, so that the device does not wait at each block. Every
vector is compared with the first one on the device, and the result is read with the next vector: a layer that
sees another one is never used wrongly in silence.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import nn

from lorakit.core.errors import ConfigError
from lorakit.models.memory.blocks import repeated_blocks
from lorakit.models.memory.host_memory import has_streams

_MODULATION = re.compile(
    r"(^|\.)norm(_out)?\d*(_context)?\.linear$|(^|[._])adaln_modulation(\.\d+)?$|\.(img|txt)_mod\.\d+$"
    r"|\.(text|visual)_modulation\.out_layer$",
    re.IGNORECASE,
)


def is_modulation(name: str, module: nn.Module) -> bool:
    """Return True for a linear layer, of full precision or quantized, that computes AdaLN's modulation."""
    return bool(_MODULATION.search(name)) and hasattr(module, "in_features") and not module._modules


def modulation_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modulation layers of a network's repeated blocks that carry no adapter, by name."""
    return {
        f"{block.name}.{name}": module
        for block in repeated_blocks(network)
        for name, module in block.module.named_modules()
        if is_modulation(f"{block.name}.{name}", module)
    }


class ModulationTape:
    """The modulation of one block's forward pass, which recomputing it reuses."""

    _current = threading.local()

    def __init__(self) -> None:
        self._results: list[torch.Tensor | None] = []
        self._position: int | None = None

    @contextlib.contextmanager
    def pass_through(self) -> Iterator[None]:
        """Record within the block the first time, and replay in each later pass."""
        self._position = None if self._position is None else 0
        before = getattr(self._current, "tape", None)
        self._current.tape = self
        try:
            yield
        finally:
            self._current.tape = before
            self._position = 0

    @classmethod
    def through(cls, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return a recorded result, or compute it; what gradients flow through is computed again."""
        tape: ModulationTape | None = getattr(cls._current, "tape", None)
        if tape is None:
            return compute()
        if tape._position is None:
            result = compute()
            tape._results.append(None if result.requires_grad else result)
            return result
        recorded = tape._results[tape._position]
        tape._position += 1
        return compute() if recorded is None else recorded


class HostModulation:
    """The modulation layers of a network, computed on the host from now on."""

    def __init__(self, layers: Iterable[nn.Module], device: torch.device) -> None:
        self.device = device
        self.is_paused = False
        """True while shapes are counted: layers then are called one by one."""
        self.leaders: list[_HostLayer] = []
        self._worker: ThreadPoolExecutor | None = None
        self._mismatch: torch.Tensor | None = None
        self._modules = list(layers)
        for module in self._modules:
            module.forward = _HostLayer(self, module)

    def exclude_from_compilation(self) -> None:
        """Let compiled blocks call these layers without compiling them; imports torch's compiler."""
        for module in self._modules:
            module.forward = torch.compiler.disable(module.forward)

    def call(self, layer: _HostLayer, vector: torch.Tensor) -> torch.Tensor:
        """Return the modulation (B, K x D) of a layer for a vector (B, D) on the device."""
        with_gradient = torch.is_grad_enabled() and vector.requires_grad
        if self.is_paused or with_gradient or self.device.type == "meta":
            return layer.compute(vector.to(layer.host)).to(vector.device)
        with torch.no_grad():
            if layer.leader is None:
                self._learn(layer, vector)
            leader = layer.leader
            assert leader is not None
            if leader is layer:
                self._compute_followers(layer, vector)
            elif layer.result is None or not self._is_same_vector(leader, vector):
                return layer.compute(vector.to(layer.host)).to(vector.device)
            assert layer.result is not None
            result, layer.result = layer.result, None  # a second call in a pass may see another vector
            return result().to(vector.device, non_blocking=True)

    def _learn(self, layer: _HostLayer, vector: torch.Tensor) -> None:
        """Find the layer that was called first with the same vector; the layer itself if there is none."""
        host_vector = vector.to(layer.host)
        for leader in self.leaders:
            if leader.host_vector is not None and _is_equal(leader.host_vector, host_vector):
                layer.leader = leader
                leader.followers.append(layer)
                self._submit(layer, host_vector, _autocast(self.device))
                return
        layer.leader = layer
        self.leaders.append(layer)

    def _compute_followers(self, leader: _HostLayer, vector: torch.Tensor) -> None:
        """Compute a layer now, and those that see the same vector in the worker, in order of use."""
        host_vector = vector.to(leader.host)  # the host waits for the device here, and not at each block
        if self._mismatch is not None and self._mismatch.item():
            raise ConfigError(
                "modulation layers that saw the same vector before see different ones now",
                where="memory.offload_modulation",
                remedy="memory.offload_modulation=false",
            )
        leader.vector, leader.host_vector = vector, host_vector
        autocast = _autocast(self.device)
        for follower in leader.followers:
            self._submit(follower, host_vector, autocast)
        result = self._pinned(leader.compute(host_vector))
        leader.result = lambda: result

    def _submit(self, layer: _HostLayer, host_vector: torch.Tensor, autocast: _Autocast) -> None:
        def compute() -> torch.Tensor:
            with torch.no_grad(), torch.autocast("cpu", autocast.dtype, enabled=autocast.enabled):
                return self._pinned(layer.compute(host_vector))

        self._worker = self._worker or ThreadPoolExecutor(1, "modulation")
        layer.result = self._worker.submit(compute).result

    def _is_same_vector(self, leader: _HostLayer, vector: torch.Tensor) -> bool:
        """Compare shapes at once; numbers on the device, where the result is read in the next pass."""
        first = leader.vector
        if first is None or first.shape != vector.shape or first.dtype != vector.dtype:
            return False
        if first is not vector:
            differs = (_bits(first) != _bits(vector)).any()
            self._mismatch = differs if self._mismatch is None else self._mismatch | differs
        return True

    def _pinned(self, result: torch.Tensor) -> torch.Tensor:
        return result.pin_memory() if has_streams(self.device) else result


class _HostLayer:
    """The forward pass of a modulation layer whose weights stay in host memory."""

    def __init__(self, modulation: HostModulation, module: nn.Module) -> None:
        self._modulation = modulation
        self._forward = module.forward
        self.host = next(module.parameters()).device
        self.leader: _HostLayer | None = None
        self.followers: list[_HostLayer] = []
        self.vector: torch.Tensor | None = None
        self.host_vector: torch.Tensor | None = None
        self.result: Callable[[], torch.Tensor] | None = None

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        return ModulationTape.through(lambda: self._modulation.call(self, vector))

    def compute(self, host_vector: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for a vector in host memory."""
        result: torch.Tensor = self._forward(host_vector)
        return result


class _Autocast(NamedTuple):
    enabled: bool
    dtype: torch.dtype


def _autocast(device: torch.device) -> _Autocast:
    """Return the mixed precision that is in force on a device, for its layers on the host."""
    return _Autocast(torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return numbers as bytes: a comparison then treats NaN as equal to itself."""
    return tensor.contiguous().view(torch.uint8)


def _is_equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(_bits(left), _bits(right))
