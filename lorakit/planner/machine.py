"""The machine that a run is planned for: memory and speeds of its device, from the table or measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lorakit.core.platform import total_memory
from lorakit.models import device as devices
from lorakit.planner.cards import Card, match_card

GIB = 1 << 30
LINEAR_EFFICIENCY, CONVOLUTION_EFFICIENCY, ATTENTION_EFFICIENCY = 0.7, 0.5, 0.5
"""Shares of a card's published speed that large kernels reach: assumed, not measured here."""
BANDWIDTH_EFFICIENCY, LINK_EFFICIENCY = 0.8, 0.8
LAUNCH_SECONDS = 6e-6
"""Seconds that the host needs to start a kernel, Python included: below it a GPU waits."""
CONTEXT_BYTES = 640 << 20
"""Context of a GPU's driver, and workspaces of its libraries."""
USABLE_SHARE, USABLE_MAIN_SHARE = 0.95, 0.85
ASSUMED_MAIN_MEMORY = 48 * GIB
"""Main memory for weights and activations beside a card of the table."""
UNKNOWN_TFLOPS = 20.0  # half precision of a card that the table does not have


@dataclass(frozen=True)
class Machine:
    """A device with its host."""

    name: str
    platform: str
    """Type of torch's device: cuda (ROCm too), xpu, mps, cpu."""
    usable_bytes: int
    """Memory that a run may fill."""
    host_bytes: int
    """Main memory for weights that stay there."""
    linear: dict[str, float]
    """Operations a second of linear layers, by bf16, fp16, fp32, int8 and fp8 where there is one."""
    convolution: float
    attention: float
    """Operations a second in the run's precision."""
    bandwidth: float
    """Bytes a second of the device's memory."""
    link: float
    """Bytes a second from host to device; 0 where they share memory."""
    launch_seconds: float = LAUNCH_SECONDS
    context_bytes: int = CONTEXT_BYTES
    precision: str = "bf16"
    """The fastest precision."""

    @property
    def has_own_memory(self) -> bool:
        """True if weights and activations can wait in main memory."""
        return self.link > 0

    def speed(self, precision: str) -> float:
        """Return the operations a second of linear layers; of the precision's kin if it is unknown."""
        return self.linear.get(precision) or self.linear.get(self.precision) or self.linear["fp32"]


def machine_of_card(card: Card, precision: str | None = None, memory_gib: float | None = None) -> Machine:
    """Return a machine with a card of the table; `precision` is that of the run."""
    precision = precision or card.half
    half = card.half_tflops * 1e12 * LINEAR_EFFICIENCY
    linear = {"fp32": card.fp32_tflops * 1e12 * LINEAR_EFFICIENCY, "fp16": half, card.half: half}
    for key, speed in (("int8", card.int8_tops), ("fp8", card.fp8_tflops)):
        if speed:
            linear[key] = speed * 1e12 * LINEAR_EFFICIENCY
    base = linear.get(precision, linear["fp32"]) / LINEAR_EFFICIENCY
    memory = (memory_gib or card.memory_gib) * GIB
    return Machine(
        name=card.name,
        platform=card.platform,
        usable_bytes=int(memory * USABLE_SHARE),
        host_bytes=int(total_memory() * USABLE_MAIN_SHARE) if not card.pcie_gb else ASSUMED_MAIN_MEMORY,
        linear=linear,
        convolution=base * CONVOLUTION_EFFICIENCY,
        attention=base * ATTENTION_EFFICIENCY,
        bandwidth=card.bandwidth_gb * 1e9 * BANDWIDTH_EFFICIENCY,
        link=card.pcie_gb * 1e9 * LINK_EFFICIENCY,
        precision=card.half,
    )


def machine_with_memory(gib: float) -> Machine:
    """Return a machine with a card of this memory: the slowest usual one, which has at least as much."""
    from lorakit.planner.cards import all_cards

    usual = [card for card in all_cards() if card.name.startswith("RTX") and card.half == "bf16"]
    large = [card for card in usual if card.memory_gib >= gib] or [max(usual, key=lambda c: c.memory_gib)]
    card = min(large, key=lambda card: (card.memory_gib, card.half_tflops))
    return replace(
        machine_of_card(card, memory_gib=gib), name=f"a card with {gib:g} GB, as fast as {card.name}"
    )


def this_machine(device: torch.device | None = None) -> Machine:
    """Return the machine that this process runs on; a CPU has assumed speeds: see `measured_cpu`."""
    device = device or devices.default_device()
    if device.type == "cpu":
        return cpu_machine()
    info = next((one for one in devices.list_devices() if one.device.type == device.type), None)
    name, memory = (info.name, info.memory_bytes) if info else (str(device), total_memory())
    card = match_card(name, memory / GIB)
    if card is None:
        card = Card(name, memory / GIB, 300, UNKNOWN_TFLOPS / 2, UNKNOWN_TFLOPS, 0, 0, 12, "bf16")
    supported = devices.supported_precisions(device)
    machine = machine_of_card(card, supported[0])
    usable = int(memory * USABLE_SHARE) if device.type == "mps" else free_bytes(device)
    shared = device.type == "mps"
    return replace(
        machine,
        name=name,
        platform=device.type,
        usable_bytes=usable,
        host_bytes=0 if shared else _free_main_memory(),
        link=0 if shared else machine.link,
        context_bytes=0 if not shared and torch.accelerator.is_available() else machine.context_bytes,
        precision=supported[0],
    )


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that a run may fill now: its context is counted as used already."""
    if device.type == "cpu":
        return _free_main_memory()
    free, _ = torch.accelerator.get_memory_info(device)
    held = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int((free + held) * USABLE_SHARE)


def _free_main_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available * USABLE_MAIN_SHARE)


def cpu_machine() -> Machine:
    """Return this machine without a GPU, with assumed speeds."""
    return Machine(
        name="this CPU",
        platform="cpu",
        usable_bytes=_free_main_memory(),
        host_bytes=0,
        linear={"fp32": 5e10 * torch.get_num_threads()},
        convolution=5e10 * torch.get_num_threads(),
        attention=3e10 * torch.get_num_threads(),
        bandwidth=1e10,
        link=0,
        launch_seconds=5e-6,
        context_bytes=0,
        precision="fp32",
    )


def measured_cpu(machine: Machine, dtype: torch.dtype = torch.float32) -> Machine:
    """Return a CPU with its speeds measured, in a few seconds of CPU time.

    Each kind of work is a forward pass and the gradient of its input, as in a training of an adapter: the
    kernels of gradients are slower.
    """
    tokens, weight = _random(256, 512, dtype=dtype), torch.randn(512, 1024, dtype=dtype)
    heads = _random(1, 8, 512, 64, dtype=dtype)
    linear = 2 * 2 * 256 * 512 * 1024 / _pass_seconds(lambda: tokens @ weight)
    attended = (
        3.5
        * 4
        * 8
        * 512
        * 512
        * 64
        / _pass_seconds(lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads))
    )
    convolved = 0.0
    for channels, side in ((64, 32), (256, 8)):  # a U-Net's first and last level
        image = _random(1, channels, side, side, dtype=dtype)
        kernel = torch.randn(channels, channels, 3, 3, dtype=dtype)
        operations = 2 * 2 * 9 * channels**2 * side**2
        seconds = _pass_seconds(lambda i=image, k=kernel: torch.conv2d(i, k, padding=1))  # type: ignore[misc]
        convolved += 0.5 * operations / seconds
    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    return replace(
        machine,
        linear=machine.linear | {name: linear},
        precision=name,
        convolution=convolved,
        attention=attended,
        bandwidth=_elementwise_bandwidth(dtype),
        launch_seconds=_launch_seconds(dtype),
    )


def _elementwise_bandwidth(dtype: torch.dtype) -> float:
    """Measure the bytes a second of norms and activation functions, as the meter counts bytes.

    On a CPU their functions take longer than their memory.
    """
    image, functions = _random(1, 64, 64, 64, dtype=dtype), torch.nn.functional
    seconds = _pass_seconds(lambda: functions.gelu(functions.silu(functions.group_norm(image, 8))), count=3)
    reads_and_writes = 3 * 2 + 3 * 3  # of each function forward, and of its gradient
    return reads_and_writes * image.nbytes / seconds


def _launch_seconds(dtype: torch.dtype) -> float:
    """Measure the seconds of a kernel that does next to nothing, autograd and modules included."""
    layer = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.LayerNorm(16)).to(dtype)
    value = _random(4, 16, dtype=dtype)
    kernels = 3 + 2 + 1 + 2 + 1  # forward; gradients of the product, its bias, and the two other layers
    return _pass_seconds(lambda: layer(value), count=60) / kernels


def _random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def _pass_seconds(forward: Callable[[], torch.Tensor], count: int = 6) -> float:
    """Return the seconds of a forward pass and its backward pass."""
    gradient = torch.ones_like(forward())
    return _seconds(lambda: forward().backward(gradient), count=count)


def _seconds(work: Callable[[], object], count: int = 12) -> float:
    """Return the CPU seconds of one call, divided by the threads; the median of a few rounds."""
    work()
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(count):
            work()
        rounds.append((time.process_time() - start) / count)
    return max(1e-9, sorted(rounds)[1] / torch.get_num_threads())
