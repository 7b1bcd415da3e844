"""The memory that a run needs on its device, by part, under given memory settings.

The peak is in the backward pass of one of the blocks: there are the activations of the blocks before it,
those of the block itself, recomputed if it is checkpointed, and the gradients of its activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

from lorakit.models.acceleration.cpu_attention import MAX_WORKSPACE
from lorakit.models.memory import MemorySettings
from lorakit.models.memory.quantize import BYTES_PER_WEIGHT
from lorakit.models.memory.streaming import RING_BLOCKS
from lorakit.planner.demand import FLOAT32, RunDemand
from lorakit.planner.meter import PassCount
from lorakit.planner.network_count import NetworkCount
from lorakit.planner.weights import WeightCount

MIB = 1 << 20
FRAGMENTATION = 0.04  # of what is allocated and freed in each step
OFFLOADED_BLOCKS = 3  # inputs on the device: of the block that computes, and of those in transfer


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device at the peak of a step, by part."""

    weights: int = 0
    """Frozen weights of the denoiser that stay on the device."""
    ring: int = 0
    """Streamed blocks that are on the device at once."""
    other_networks: int = 0
    """VAE and text encoders that stay."""
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    """Kept for the backward pass."""
    recomputed: int = 0
    """Activations of the one block that is being recomputed."""
    temporary: int = 0
    """Gradients of activations and other tensors of the block that computes."""
    context: int = 0
    """The device's context, the libraries' workspace, fragments."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, part.name) for part in fields(self))

    def to_json(self) -> dict[str, int]:
        """Return the parts and their sum."""
        return {part.name: getattr(self, part.name) for part in fields(self)} | {"total": self.total}


def estimate_footprint(
    demand: RunDemand, settings: MemorySettings, micro_batch: int = 1, context_bytes: int = 0
) -> Footprint:
    """Estimate the memory of a run; `context_bytes` is what the device needs for itself."""
    network = demand.network
    ring = 0
    if settings.stream:
        sizes = [_block_bytes(block.weights, settings, network.itemsize) for block in network.blocks]
        ring = RING_BLOCKS * max(sizes, default=0)
    activations, recomputed, temporary = _activation_bytes(network, settings, micro_batch)
    temporary = temporary * micro_batch + _unpacked_bytes(network, settings)
    moving = (activations + recomputed) * micro_batch + temporary
    return Footprint(
        weights=resident_bytes(network, settings),
        ring=ring,
        other_networks=sum(demand.others.values()),
        **demand.adapter_bytes(),
        activations=activations * micro_batch,
        recomputed=recomputed * micro_batch,
        temporary=temporary,
        context=context_bytes + int(FRAGMENTATION * moving) if context_bytes else 0,
    )


def bytes_per_weight(settings: MemorySettings, itemsize: int) -> float:
    """Return the bytes of a weight that can be quantized."""
    return BYTES_PER_WEIGHT[settings.quantize] if settings.quantize else float(itemsize)


def resident_bytes(network: NetworkCount, settings: MemorySettings) -> int:
    """Return the bytes of the frozen weights that stay on the device."""
    blocks = sum(
        part.number * _block_bytes(part.weights, settings, network.itemsize) for part in network.blocks
    )
    rest = _block_bytes(network.rest.weights, settings, network.itemsize)
    return rest + int(blocks * (1 - settings.stream))


def streamed_bytes(network: NetworkCount, settings: MemorySettings) -> int:
    """Return the bytes of the weights that visit the device once in each direction of a pass."""
    sizes = [part.number * _block_bytes(part.weights, settings, network.itemsize) for part in network.blocks]
    return int(sum(sizes) * settings.stream)


def modulation_bytes(network: NetworkCount, settings: MemorySettings) -> int:
    """Return the bytes of the modulation layers."""
    each = bytes_per_weight(settings, network.itemsize)
    return int(
        sum(
            part.number
            * (part.weights.quantizable_modulation * each + part.weights.modulation * network.itemsize)
            for part in network.parts
        )
    )


def host_bytes(network: NetworkCount, settings: MemorySettings, micro_batch: int = 1) -> int:
    """Return the bytes that the settings keep in main memory."""
    kept = streamed_bytes(network, settings)
    if settings.offload_modulation:
        kept += modulation_bytes(network, settings)
    if settings.offload_activations:
        kept += micro_batch * kept_bytes(network, settings)
    return kept


def kept_bytes(network: NetworkCount, settings: MemorySettings) -> int:
    """Return the bytes that the blocks keep of one image for the backward pass."""
    chosen = checkpointed_numbers(network, settings.gradient_checkpointing)
    return sum(
        recomputed * block.passes.input_bytes + (block.number - recomputed) * block.passes.saved_bytes
        for block, recomputed in zip(network.blocks, chosen, strict=True)
    )


def _block_bytes(weights: WeightCount, settings: MemorySettings, itemsize: int) -> int:
    """Return the bytes of a block's weights on the device while it computes."""
    each = bytes_per_weight(settings, itemsize)
    size = weights.quantizable * each + weights.other * itemsize
    if not settings.offload_modulation:
        size += weights.quantizable_modulation * each + weights.modulation * itemsize
    return int(size)


def _unpacked_bytes(network: NetworkCount, settings: MemorySettings) -> int:
    """Return the bytes of the largest layer in full precision, to which nf4 unpacks it for its product."""
    if settings.quantize != "nf4":
        return 0
    return max((block.weights.largest for block in network.blocks), default=0) * network.itemsize


def checkpointed_numbers(network: NetworkCount, share: float) -> list[int]:
    """Return how many blocks of each entry of `network.blocks` are recomputed, as placement chooses them."""
    left = math.ceil(share * network.num_blocks - 1e-9)
    chosen = [0] * len(network.blocks)
    for index in sorted(range(len(network.blocks)), key=lambda i: network.blocks[i].weights.width):
        chosen[index] = min(left, network.blocks[index].number)
        left -= chosen[index]
    return chosen


@dataclass(frozen=True)
class _Moment:
    """Bytes for one image while a block computes its backward pass."""

    kept: int
    recomputed: int
    temporary: int

    @property
    def total(self) -> int:
        return self.kept + self.recomputed + self.temporary


def _activation_bytes(
    network: NetworkCount, settings: MemorySettings, micro_batch: int
) -> tuple[int, int, int]:
    """Return what is kept, recomputed and temporary for each image at the peak of a step."""
    peak = max(_moments(network, settings, micro_batch), key=lambda moment: moment.total)
    return peak.kept, peak.recomputed, peak.temporary


def _peak_bytes(passes: PassCount, itemsize: int, micro_batch: int) -> int:
    """Return the most memory of a block at once, for each image."""
    peak = max(passes.forward_peak_bytes, passes.backward_peak_bytes)
    if itemsize == FLOAT32:
        return peak
    workspace = min(passes.workspace_bytes, max(passes.workspace_bytes, MAX_WORKSPACE) // micro_batch)
    return max(peak, passes.attention_peak_bytes + workspace)


def _moments(network: NetworkCount, settings: MemorySettings, micro_batch: int) -> Iterator[_Moment]:
    rest = network.rest.passes
    kept, offloaded = rest.saved_bytes, 0
    chosen = checkpointed_numbers(network, settings.gradient_checkpointing)
    for block, recomputed in zip(network.blocks, chosen, strict=True):
        passes = block.passes
        peak = _peak_bytes(passes, network.itemsize, micro_batch)
        # the first of equal blocks are recomputed
        for number, is_recomputed in ((recomputed, True), (block.number - recomputed, False)):
            if not number:
                continue
            each = passes.input_bytes if is_recomputed else passes.saved_bytes
            if settings.offload_activations:
                offloaded, each = max(offloaded, each), 0
            kept += number * each
            waiting = OFFLOADED_BLOCKS * offloaded
            if is_recomputed:
                own = peak - passes.shared_bytes
                saved = min(own, passes.saved_bytes)
                yield _Moment(kept + waiting, saved, own - saved)
            else:  # what the block keeps is in both numbers
                yield _Moment(kept + waiting, 0, max(0, peak - passes.saved_bytes))
    peak = _peak_bytes(rest, network.itemsize, micro_batch)
    yield _Moment(kept + OFFLOADED_BLOCKS * offloaded, 0, max(0, peak - rest.saved_bytes))
