"""A forward and backward pass measured on this CPU: the run's own network, with random weights.

A table of speeds does not predict a CPU: attention with narrow heads, convolutions of small images and small
matrix products run at a tenth of the speed of large ones, and thousands of calls from Python take as long as
their arithmetic. So the network is run at the run's shapes, with few of its equal blocks, and its times are
multiplied. Times are those of the thread that computes, which other programs disturb less than a clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lorakit.models.acceleration import cpu_attention
from lorakit.models.families.family import Family
from lorakit.planner.meter import REST, observed_blocks
from lorakit.planner.short_network import Shapes, ShortNetwork, pass_inputs, short_network

MEASURED_SECONDS = 2.0
"""Time for the rounds after the first, of which there are 1 to `_MAX_ROUNDS`."""
_MAX_ROUNDS = 5
_LONG_SECONDS = 3.0  # a first round that is longer counts: preparing kernels is a small part of it
_POOL = 1 << 20  # random numbers that all weights repeat
UpdateFn = Callable[[Sequence[nn.Parameter]], float]
"""Returns the seconds in which an optimizer updates parameters."""


@dataclass(frozen=True)
class PassTimes:
    """Measured seconds of a pass over some images at once, by block; `REST` is what is in no block."""

    images: int
    forward: Mapping[str, float]
    backward: Mapping[str, float]
    update: float = 0.0
    """Of the optimizer's step over all trainable parameters."""

    def of_block(self, name: str) -> tuple[float, float]:
        """Return the seconds of a block forward and backward."""
        return self.forward.get(name, 0.0), self.backward.get(name, 0.0)


@dataclass
class _Clock:
    """Adds up the time of the thread by direction and block."""

    seconds: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))
    block: str = REST
    is_backward: bool = False
    started: float = field(default_factory=time.thread_time)

    def move_to(self, block: str) -> None:
        """Go on in a block, in either direction."""
        now = time.thread_time()
        seconds = self.seconds[self.is_backward]
        seconds[self.block] = seconds.get(self.block, 0.0) + now - self.started
        self.block, self.started = block, now

    def enter(self, block: str, inputs: Any) -> None:
        """Enter a block in the forward pass."""
        self.move_to(block)


def measure_pass(
    family: Family,
    build: Callable[[], nn.Module],
    inject: Callable[[nn.Module], object],
    latent_shape: tuple[int, ...],
    conditioning: Shapes,
    *,
    dtype: torch.dtype,
    images: int = 1,
    shorten: bool = True,
    update: UpdateFn | None = None,
) -> PassTimes:
    """Measure a training pass of a network on this CPU; see `count_network` for the arguments.

    `images` go through the network at once. `shorten` leaves equal blocks out, and their memory.
    """
    if dtype != torch.float32:
        cpu_attention.use_matrix_products()
    network = short_network(build, inject, dtype, shorten=shorten)
    fill_with_random_weights(network.module.eval())
    latents, timesteps, cond = pass_inputs(family, latent_shape, conditioning, dtype, images)
    for tensor in (latents, *cond.values()):
        if tensor.is_floating_point():
            _fill(tensor, 1.0)
    target = torch.zeros(latents.shape)

    def forward() -> torch.Tensor:
        prediction = family.predict(network.module, latents, timesteps, cond)
        return (prediction.float() - target.expand_as(prediction)).square().mean()

    rounds = _measure_rounds(network, forward)
    seconds = 0.0
    if update is not None:
        trained = [parameter for parameter in network.module.parameters() if parameter.requires_grad]
        seconds = update(trained) * network.trained / max(1, sum(p.numel() for p in trained))
    return PassTimes(images, _medians([r[0] for r in rounds]), _medians([r[1] for r in rounds]), seconds)


def _measure_rounds(
    network: ShortNetwork, forward: Callable[[], torch.Tensor]
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Run the pass several times; the first, in which libraries prepare their kernels, does not count."""
    blocks = {block.name: block.module for block in network.blocks}

    def one_round() -> tuple[dict[str, float], dict[str, float]]:
        clock = _Clock()
        with observed_blocks(clock, blocks), torch.enable_grad():
            loss = forward()
            clock.move_to(REST)
            clock.is_backward = True
            loss.backward()
            clock.move_to(REST)
        network.module.zero_grad(set_to_none=True)
        return clock.seconds

    start = time.perf_counter()
    first = one_round()
    seconds = time.perf_counter() - start
    if seconds > _LONG_SECONDS:
        return [first]
    return [one_round() for _ in range(max(1, min(_MAX_ROUNDS, int(MEASURED_SECONDS / seconds))))]


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one.get(name, 0.0) for one in rounds) for name in rounds[0]}


def fill_with_random_weights(network: nn.Module) -> None:
    """Replace weights and buffers on the meta device by random numbers on the CPU.

    Activations keep their size from layer to layer, so that no number is one that a CPU is slow with.
    """
    filled: dict[int, torch.Tensor] = {}

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in filled:
            filled[id(tensor)] = _random_weight(tensor)
        return filled[id(tensor)]

    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                replaced = nn.Parameter(fill(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = replaced
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = fill(buffer)


def _random_weight(tensor: torch.Tensor) -> torch.Tensor:
    values = torch.empty(tensor.shape, dtype=tensor.dtype)
    if not tensor.is_floating_point():
        return values.zero_()
    if tensor.ndim < 2:  # a norm's weight; as a bias it does no harm
        return values.fill_(1)
    _fill(values, tensor.shape[1:].numel() ** -0.5)
    return values


def _fill(tensor: torch.Tensor, scale: float) -> None:
    """Fill a tensor with random numbers, of which the same million is repeated."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(min(_POOL, tensor.numel()), generator=generator).mul_(scale).to(tensor.dtype)
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), _POOL):
        part = flat[start : start + _POOL]
        part.copy_(numbers[: part.numel()])
