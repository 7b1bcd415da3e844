"""The time of an optimizer step: of a pass measured on this CPU, or of a counted pass on a machine.

A GPU works while the host starts further kernels, and while weights are transferred: the slowest of the three
decides. A CPU does one after the other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lorakit.models.memory import MemorySettings
from lorakit.planner.demand import RunDemand
from lorakit.planner.footprint import checkpointed_numbers, kept_bytes, modulation_bytes, streamed_bytes
from lorakit.planner.machine import Machine
from lorakit.planner.meter import REST, Work
from lorakit.planner.network_count import NetworkCount
from lorakit.planner.pass_times import PassTimes

_PRODUCTS = {"int8": "int8", "fp8": "fp8"}
_UNPACKING_BYTES = {"nf4": 2.5, "int8": 3.0, "fp8": 3.0}
"""Bytes read and written for each weight that is unpacked where a device does not multiply its codes."""
HOST_BANDWIDTH = 2e10  # bytes a second of main memory, for modulation on the host
OPTIMIZER_BYTES = 28  # read and written for each trainable parameter


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step, and its parts."""

    total: float
    computing: float
    launching: float
    """Of the host, to start the kernels."""
    transferring: float
    """Streamed weights, and activations in host memory."""

    def to_json(self) -> dict[str, Any]:
        """Return the seconds with three digits."""
        return {name: float(f"{value:.3g}") for name, value in asdict(self).items()}

    @property
    def limit(self) -> str:
        """The part that decides, in words."""
        parts = {
            self.computing: "computing",
            self.launching: "starting kernels",
            self.transferring: "transfers of weights and activations",
        }
        return parts[max(parts)]


def estimate_step(
    demand: RunDemand, settings: MemorySettings, machine: Machine, micro_batch: int = 1
) -> StepTime:
    """Estimate the seconds of one optimizer step over the whole batch."""
    network = demand.network
    images = demand.batch_size * demand.accumulate * demand.passes
    forwards = -(-demand.batch_size // micro_batch) * demand.accumulate * demand.passes
    area = demand.mean_area
    if demand.times is not None:
        computing = images * area * measured_seconds(network, demand.times, settings) / demand.times.images
        computing += demand.times.update
        launching = 0.0  # is in the measured times
    else:
        work = pass_work(network, settings)
        computing = images * _seconds(work, network, settings, machine, area)
        computing += OPTIMIZER_BYTES * demand.trained / machine.bandwidth
        launching = forwards * work.kernels * machine.launch_seconds
    computing += forwards * _unpacking_seconds(network, settings, machine)
    moved = 2 * forwards * streamed_bytes(network, settings)
    if settings.offload_activations:
        moved += 2 * images * area * kept_bytes(network, settings)
    transferring = moved / machine.link if machine.link else 0.0
    if settings.offload_modulation:
        transferring = max(transferring, forwards * modulation_bytes(network, settings) / HOST_BANDWIDTH)
    parts = (computing, launching, transferring)
    total = computing + launching if machine.platform == "cpu" else max(parts)
    return StepTime(total, computing, launching, transferring)


def kept_pass_seconds(network: NetworkCount, machine: Machine) -> float:
    """Return the seconds of a pass for one image, of each of the equal blocks that are run only once."""
    total = Work()
    for part in network.parts:
        _add(total, part.passes.forward)
        _add(total, part.passes.backward)
    return _seconds(total, network, MemorySettings(), machine, 1.0) + total.kernels * machine.launch_seconds


def measured_seconds(network: NetworkCount, times: PassTimes, settings: MemorySettings) -> float:
    """Return the seconds of a pass over the images of `times`, recomputed blocks included."""
    total = sum(times.of_block(REST))
    chosen = checkpointed_numbers(network, settings.gradient_checkpointing)
    for block, recomputed in zip(network.blocks, chosen, strict=True):
        forward, backward = times.of_block(block.name)
        total += (block.number + recomputed) * forward + block.number * backward
    return total


def pass_work(network: NetworkCount, settings: MemorySettings) -> Work:
    """Return the work of a forward and backward pass for one image, recomputed blocks included."""
    total = Work()
    _add(total, network.rest.passes.forward)
    _add(total, network.rest.passes.backward)
    chosen = checkpointed_numbers(network, settings.gradient_checkpointing)
    for block, recomputed in zip(network.blocks, chosen, strict=True):
        _add(total, block.passes.forward, block.number + recomputed)
        _add(total, block.passes.backward, block.number)
    return total


def _add(total: Work, work: Work, times: float = 1.0) -> None:
    total.linear += times * work.linear
    total.convolution += times * work.convolution
    total.attention += times * work.attention
    total.moved_bytes += times * work.moved_bytes
    total.kernels += times * work.kernels


def _seconds(
    work: Work, network: NetworkCount, settings: MemorySettings, machine: Machine, area: float
) -> float:
    """Return the seconds of a pass for one image, whose tokens are `area` of the counted ones."""
    speed = machine.speed("fp32" if network.itemsize == 4 else machine.precision)
    product = machine.linear.get(_PRODUCTS.get(settings.quantize or "", ""), 0.0)
    quantized = _quantized_share(network) if product else 0.0
    linear = work.linear * ((1 - quantized) / speed + (quantized / product if product else 0.0))
    attention = area * work.attention / machine.attention
    return area * (linear + work.convolution / machine.convolution + attention) + (
        area * work.moved_bytes / machine.bandwidth
    )


def _quantized_share(network: NetworkCount) -> float:
    """Return the share of the linear operations that are in layers which can be quantized."""
    linear = sum(part.number * part.passes.forward.linear for part in network.parts)
    inside = sum(
        part.number * part.passes.forward.linear
        for part in network.blocks
        if part.weights.quantizable > part.weights.other
    )
    return inside / linear if linear else 0.0


def _unpacking_seconds(network: NetworkCount, settings: MemorySettings, machine: Machine) -> float:
    """Return the seconds to unpack the weights, in both directions of a pass."""
    kind = settings.quantize
    if kind is None or machine.linear.get(_PRODUCTS.get(kind, "")):
        return 0.0
    weights = sum(
        part.number * (part.weights.quantizable + part.weights.quantizable_modulation)
        for part in network.blocks
    )
    return (2 + settings.gradient_checkpointing) * weights * _UNPACKING_BYTES[kind] / machine.bandwidth
