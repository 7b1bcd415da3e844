"""Memory settings in force on a network: where each block's weights are, and what it keeps for backward.

None of them changes a result: a block computes the same numbers from the same weights.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lorakit.core.errors import ConfigError
from lorakit.models.memory import blocks, checkpointing, tensor_places
from lorakit.models.memory.blocks import Block
from lorakit.models.memory.host_memory import SHARED_MEMORY
from lorakit.models.memory.host_modulation import HostModulation, modulation_layers
from lorakit.models.memory.offload import ActivationOffload
from lorakit.models.memory.settings import MemorySettings
from lorakit.models.memory.streaming import WeightRing

_ATTRIBUTE = "_lorakit_placement"


class PlacedBlock:
    """The forward pass of one block: its weights arrive, it computes, and it keeps what backward needs."""

    def __init__(self, block: Block) -> None:
        self.name, self.module = block.name, block.module
        self.forward = block.module.forward
        self.recomputed = False
        self.ring: WeightRing | None = None
        self.ring_index = 0
        self.offload: ActivationOffload | None = None
        self._is_random = checkpointing.is_random(block.module)
        functools.update_wrapper(self, self.forward, updated=())  # some networks read its signature
        block.module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.ring is not None:
            self.ring.enter(self.ring_index, backward=False)
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        with self.offload.hooks() if self.offload else contextlib.nullcontext():
            if self.recomputed:
                output = checkpointing.recompute(self.forward, args, kwargs, preserve_rng=self._is_random)
            else:
                output = self.forward(*args, **kwargs)
        if self.ring is not None:
            self._enter_before_backward(self.ring, output)
        return output

    def _enter_before_backward(self, ring: WeightRing, output: Any) -> None:
        """Load the weights before the block's backward pass, which starts with the gradient of an output.

        Autograd runs the newest operation that is ready: the blocks behind this one have finished then.
        """
        for tensor in torch.utils._pytree.tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: ring.enter(self.ring_index, backward=True))


class Placement:
    """The blocks of a network with their memory settings; `place` builds it."""

    def __init__(self, network: nn.Module, settings: MemorySettings, device: torch.device) -> None:
        blocks_of_network = blocks.repeated_blocks(network)
        if settings.stream and not blocks_of_network:
            raise ConfigError(
                "this base model has no repeated blocks that could be streamed",
                where="memory.stream",
                remedy="memory.stream=0",
            )
        self.device = device
        self.blocks = [PlacedBlock(block) for block in blocks_of_network]
        self.modulation: HostModulation | None = None
        self.ring: WeightRing | None = None
        self.offload: ActivationOffload | None = None
        kept = self._offload_modulation(network) if settings.offload_modulation else set()
        streamed = {block.name for block in blocks.spread_blocks(blocks_of_network, settings.stream)}
        self._host_bytes = self._move(network, streamed, kept)
        if streamed:
            self._stream([block for block in self.blocks if block.name in streamed], kept)
        self.set_checkpointing(settings.gradient_checkpointing)
        if settings.offload_activations:
            self._offload_activations(network)

    def set_checkpointing(self, share: float) -> None:
        """Recompute a share of the blocks from now on."""
        blocks_of_network = [Block(block.name, block.module) for block in self.blocks]
        chosen = {block.name for block in blocks.narrowest_blocks(blocks_of_network, share)}
        for block in self.blocks:
            block.recomputed = block.name in chosen

    @property
    def checkpointing_share(self) -> float:
        """Share of the blocks that are recomputed."""
        return sum(block.recomputed for block in self.blocks) / max(1, len(self.blocks))

    def device_bytes(self, network: nn.Module) -> int:
        """Return the bytes of frozen weights on the device at most, while the network computes."""
        waiting = tensor_places.frozen_bytes(network) - self._host_bytes
        return waiting + (self.ring.largest_resident_bytes if self.ring else 0)

    @contextlib.contextmanager
    def shapes_only(self) -> Iterator[None]:
        """Let passes on fake tensors count shapes in the block: nothing is transferred or offloaded."""
        rings = [block.ring for block in self.blocks]
        for part in (self.modulation, self.offload):
            if part is not None:
                part.is_paused = True
        if self.ring is not None:
            self.ring.show_shapes()
        for block in self.blocks:
            block.ring = None
        try:
            yield
        finally:
            for block, ring in zip(self.blocks, rings, strict=True):
                block.ring = ring
            if self.ring is not None:
                self.ring.show_host()
            for part in (self.modulation, self.offload):
                if part is not None:
                    part.is_paused = False

    def _offload_modulation(self, network: nn.Module) -> set[int]:
        """Compute modulation on the host; return the identities of its parameters, which stay there."""
        layers = modulation_layers(network)
        if not layers:
            raise ConfigError(
                "this base model has no modulation layers that could stay in host memory",
                where="memory.offload_modulation",
                remedy="memory.offload_modulation=false",
            )
        self.modulation = HostModulation(layers.values(), self.device)
        return {id(place.owner) for module in layers.values() for place in tensor_places.all_places(module)}

    def _move(self, network: nn.Module, streamed: set[str], kept: set[int]) -> int:
        """Move to the device what is not to stay in host memory; return the bytes that stay there."""
        stays = set(kept)
        for block in self.blocks:
            if block.name in streamed:
                stays |= {id(place.owner) for place in tensor_places.frozen_places(block.module)}
        for place in tensor_places.all_places(network):
            if id(place.owner) not in stays:
                place.set(place.get().to(self.device))
        return tensor_places.count_bytes(
            place for place in tensor_places.frozen_places(network) if id(place.owner) in stays
        )

    def _stream(self, placed: list[PlacedBlock], kept: set[int]) -> None:
        self.ring = WeightRing([block.module for block in placed], self.device, kept)
        for index, block in enumerate(placed):
            block.ring, block.ring_index = self.ring, index

    def _offload_activations(self, network: nn.Module) -> None:
        def weights() -> Iterator[torch.Tensor]:
            yield from (place.get() for place in tensor_places.all_places(network))
            if self.ring is not None:
                yield from self.ring.device_tensors()

        self.offload = ActivationOffload(self.device, weights)
        for block in self.blocks:
            block.offload = self.offload


def place(network: nn.Module, settings: MemorySettings, device: torch.device) -> None:
    """Put memory settings in force on a network with its adapters; its weights may be in host memory still.

    Call it once, after the adapters are injected, and after anything that replaces the blocks' forward passes
    (compilation) or their tensors. Raises ConfigError for a setting that this network or device cannot have.
    """
    if placement_of(network) is not None:
        raise RuntimeError("this network has its memory settings already")
    object.__setattr__(network, _ATTRIBUTE, Placement(network, settings, device))


def placement_of(network: nn.Module) -> Placement | None:
    """Return the memory settings in force on a network; None before `place`."""
    return vars(network).get(_ATTRIBUTE)


def waits_in_host_memory(settings: MemorySettings) -> bool:
    """Return True if weights stay in host memory: the network is loaded there, and `place` moves the rest."""
    return settings.stream > 0 or settings.offload_modulation


def shared_memory_note(settings: MemorySettings, device: torch.device) -> str | None:
    """Return a line about settings that save nothing on a device whose memory is the main memory."""
    keys = ("stream", "offload_activations", "offload_modulation")
    names = [f"memory.{key}" for key in keys if getattr(settings, key)]
    if not names or device.type not in SHARED_MEMORY:
        return None
    return (
        f"{', '.join(names)}: saves no memory here, because the memory of this device ({device.type}) is the"
        " main memory, and costs time; leave it out"
    )
