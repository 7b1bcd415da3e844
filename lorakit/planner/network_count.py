"""A network counted for a training: weights by part, and a forward and backward pass, block by block.

The network has no weights (meta device), and few of its equal blocks are run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lorakit.core.errors import LorakitError
from lorakit.models.acceleration import cpu_attention
from lorakit.models.families.family import Family
from lorakit.planner.meter import REST, PassCount, Work, WorkspaceFn, count_pass
from lorakit.planner.short_network import Shapes, ShortNetwork, pass_inputs, short_network
from lorakit.planner.weights import WeightCount


class CountError(LorakitError):
    """A network whose code does not run without weights."""


@dataclass(frozen=True)
class BlockCount:
    """One block of a network, or `number` equal ones."""

    name: str
    number: int
    weights: WeightCount
    passes: PassCount


@dataclass(frozen=True)
class NetworkCount:
    """A network with its adapter, counted for one image."""

    rest: BlockCount
    """Everything that is in no block."""
    blocks: tuple[BlockCount, ...]
    """The repeated blocks, in the order of the forward pass."""
    trained: int
    """Trainable parameters."""
    itemsize: int
    """Bytes of a number of the frozen weights and of the activations."""
    image: tuple[int, int] = (0, 0)
    """Width and height in pixels; zero where they are unknown."""

    @property
    def num_blocks(self) -> int:
        """Number of repeated blocks."""
        return sum(block.number for block in self.blocks)

    @property
    def parts(self) -> tuple[BlockCount, ...]:
        """All parts of the network."""
        return (self.rest, *self.blocks)

    def frozen(self) -> int:
        """Return the number of frozen weights."""
        return sum(part.number * part.weights.total for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return asdict(self)


_BYTES = ("saved_bytes", "input_bytes", "shared_bytes", "forward_peak_bytes", "backward_peak_bytes",
          "attention_peak_bytes")  # fmt: skip


def with_activations(network: NetworkCount, share: float) -> NetworkCount:
    """Return a network whose activations have a share of their bytes."""

    def scaled(passes: PassCount) -> PassCount:
        sizes: dict[str, Any] = {key: int(getattr(passes, key) * share) for key in _BYTES}
        return replace(passes, **sizes)

    rest, *blocks = [replace(part, passes=scaled(part.passes)) for part in network.parts]
    return replace(network, rest=rest, blocks=tuple(blocks))


def in_precision(network: NetworkCount, itemsize: int) -> NetworkCount:
    """Return a network whose weights and activations have numbers of `itemsize` bytes."""
    share = itemsize / network.itemsize
    rest, *blocks = [
        replace(
            part,
            passes=replace(
                part.passes,
                forward=replace(part.passes.forward, moved_bytes=part.passes.forward.moved_bytes * share),
                backward=replace(part.passes.backward, moved_bytes=part.passes.backward.moved_bytes * share),
            ),
        )
        for part in with_activations(network, share).parts
    ]
    return replace(network, rest=rest, blocks=tuple(blocks), itemsize=itemsize)


def network_count_from_json(values: Mapping[str, Any]) -> NetworkCount:
    """Return what `NetworkCount.to_json` has written."""
    return NetworkCount(
        rest=_block_from_json(values["rest"]),
        blocks=tuple(_block_from_json(block) for block in values["blocks"]),
        trained=values["trained"],
        itemsize=values["itemsize"],
        image=tuple(values["image"]),
    )


def _block_from_json(values: Mapping[str, Any]) -> BlockCount:
    passes = {**values["passes"]}
    passes |= {direction: Work(**passes[direction]) for direction in ("forward", "backward")}
    return BlockCount(values["name"], values["number"], WeightCount(**values["weights"]), PassCount(**passes))


def count_network(
    family: Family,
    build: Callable[[], nn.Module],
    inject: Callable[[nn.Module], object],
    latent_shape: tuple[int, ...],
    conditioning: Shapes,
    *,
    dtype: torch.dtype,
    image: tuple[int, int] = (0, 0),
    on_cpu: bool = False,
) -> NetworkCount:
    """Count a training step of a network for one image.

    `build` returns the network on the meta device, `inject` adds the adapter. `latent_shape` is that of one
    image (C, ..., H, W). `on_cpu` counts what lorakit's attention on a CPU allocates. Raises CountError for a
    network whose code needs real numbers.
    """
    settings = (family, build, inject, latent_shape, conditioning, dtype, image, on_cpu)
    try:
        return _count(*settings, shorten=True)
    except CountError:  # its code numbers the blocks
        return _count(*settings, shorten=False)


def _count(
    family: Family,
    build: Callable[[], nn.Module],
    inject: Callable[[nn.Module], object],
    latent_shape: tuple[int, ...],
    conditioning: Shapes,
    dtype: torch.dtype,
    image: tuple[int, int],
    on_cpu: bool,
    *,
    shorten: bool,
) -> NetworkCount:
    network = short_network(build, inject, dtype, shorten=shorten)
    workspace = _cpu_workspace if on_cpu else None
    counts = _run(family, network, latent_shape, conditioning, dtype, workspace)
    order = {name: index for index, name in enumerate(counts)}
    counted = [
        BlockCount(block.name, block.number, network.weights[block.name], counts.get(block.name, PassCount()))
        for block in network.blocks
    ]
    counted.sort(key=lambda block: order.get(block.name, -1))  # those that do not run stay in memory, too
    rest = BlockCount(REST, 1, _without(network.whole, counted), counts[REST])
    return NetworkCount(rest, tuple(counted), network.trained, dtype.itemsize, image)


def _without(whole: WeightCount, blocks: list[BlockCount]) -> WeightCount:
    """Return the weights of a network that are in none of its blocks."""

    def left(kind: str) -> int:
        inside = sum(block.number * getattr(block.weights, kind) for block in blocks)
        return int(getattr(whole, kind) - inside)

    kinds = ("quantizable", "quantizable_modulation", "modulation", "other")
    return WeightCount(**{kind: left(kind) for kind in kinds})


def _run(
    family: Family,
    network: ShortNetwork,
    latent_shape: tuple[int, ...],
    conditioning: Shapes,
    dtype: torch.dtype,
    workspace: WorkspaceFn | None,
) -> dict[str, PassCount]:
    """Run one training step on fake tensors."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights = _fake_weights(network.module, mode)
    blocks = {block.name: block.module for block in network.blocks}
    try:
        with mode, torch.enable_grad():
            latents, time, cond = pass_inputs(family, latent_shape, conditioning, dtype)

            def forward() -> torch.Tensor:
                prediction = family.predict(network.module, latents, time, cond)
                return (
                    (prediction.float() - torch.empty_like(prediction, dtype=torch.float32)).square().mean()
                )

            return count_pass(blocks, forward, weights, [latents, time, *cond.values()], workspace)
    except Exception as error:  # any model code runs here
        raise CountError(f"this network does not run without weights: {error}") from error


def _cpu_workspace(operation: str, arguments: Any) -> tuple[int, int]:
    """Return the bytes that an operation of lorakit's own allocates on a CPU, beside its results."""
    if operation == f"aten::{cpu_attention.OPERATOR}":
        return cpu_attention.workspace_bytes(arguments[1], arguments[2])
    return 0, 0


def _fake_weights(network: nn.Module, mode: FakeTensorMode) -> list[torch.Tensor]:
    """Replace weights and buffers on the meta device by fake ones on a CPU; return them."""
    device, fakes = torch.device("cpu"), dict[int, torch.Tensor]()

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in fakes:
            with torch.no_grad():
                fakes[id(tensor)] = FakeTensor(mode, tensor.detach().to("meta"), device)
        return fakes[id(tensor)]

    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                replaced = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = replaced
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = fake(buffer)
    return [*network.parameters(), *network.buffers()]
