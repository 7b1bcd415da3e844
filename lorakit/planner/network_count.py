"""A network counted for a training: weights by part, and a forward and backward pass, block by block.

The network has no weights (meta device). Of many equal blocks three are run: the first, which may have inputs
without gradients, the second, which stands for the others, and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lorakit.core.errors import LorakitError
from lorakit.models.families.family import Family
from lorakit.models.memory.blocks import repeated_blocks
from lorakit.planner.meter import REST, PassCount, Work, count_pass
from lorakit.planner.weights import WeightCount, count_weights

_KEPT = 3  # of a run of equal blocks
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and data type of each tensor of a sample's conditioning, without batch dimension."""


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


_BYTES = ("saved_bytes", "input_bytes", "shared_bytes", "forward_peak_bytes", "backward_peak_bytes")


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


@dataclass
class _Run:
    """Equal blocks in a row: those that are run, by the number of blocks that each stands for."""

    members: list[tuple[str, nn.Module]] = field(default_factory=list)

    def kept(self, *, shorten: bool) -> list[tuple[str, nn.Module, int]]:
        if not shorten or len(self.members) <= _KEPT:
            return [(name, module, 1) for name, module in self.members]
        first, second, last = self.members[0], self.members[1], self.members[-1]
        return [(*first, 1), (*second, len(self.members) - 2), (*last, 1)]


def count_network(
    family: Family,
    build: Callable[[], nn.Module],
    inject: Callable[[nn.Module], object],
    latent_shape: tuple[int, ...],
    conditioning: Shapes,
    *,
    dtype: torch.dtype,
    image: tuple[int, int] = (0, 0),
) -> NetworkCount:
    """Count a training step of a network for one image.

    `build` returns the network on the meta device, `inject` adds the adapter. `latent_shape` is that of one
    image (C, ..., H, W). Raises CountError for a network whose code needs real numbers.
    """
    try:
        return _count(family, build(), inject, latent_shape, conditioning, dtype, image, shorten=True)
    except CountError:  # its code numbers the blocks
        return _count(family, build(), inject, latent_shape, conditioning, dtype, image, shorten=False)


def _count(
    family: Family,
    network: nn.Module,
    inject: Callable[[nn.Module], object],
    latent_shape: tuple[int, ...],
    conditioning: Shapes,
    dtype: torch.dtype,
    image: tuple[int, int],
    *,
    shorten: bool,
) -> NetworkCount:
    from lorakit import adapters

    lists = {block.name: block.module for block in repeated_blocks(network)}
    weights = {name: count_weights(network, name) for name in lists}
    whole = count_weights(network, "")
    inject(network)
    _silent_to(network, dtype)
    trained = sum(p.numel() for _, p in adapters.trainable_parameters(network))
    runs = _runs(lists, weights)
    kept = [block for run in runs for block in run.kept(shorten=shorten)]
    _shorten_lists(network, {id(module) for module in lists.values()} - {id(module) for _, module, _ in kept})
    counts = _run(family, network, kept, latent_shape, conditioning, dtype)
    order = {name: index for index, name in enumerate(counts)}
    counted = [
        BlockCount(name, number, weights[name], counts.get(name, PassCount())) for name, _, number in kept
    ]
    counted.sort(key=lambda block: order.get(block.name, -1))  # those that do not run stay in memory, too
    rest = BlockCount(REST, 1, _without(whole, counted), counts[REST])
    return NetworkCount(rest, tuple(counted), trained, dtype.itemsize, image)


def _silent_to(network: nn.Module, dtype: torch.dtype) -> None:
    """Set the data type; diffusers warns of layers that it would keep in float32."""
    nn.Module.to(network, dtype)


def _without(whole: WeightCount, blocks: list[BlockCount]) -> WeightCount:
    """Return the weights of a network that are in none of its blocks."""

    def left(kind: str) -> int:
        inside = sum(block.number * getattr(block.weights, kind) for block in blocks)
        return int(getattr(whole, kind) - inside)

    kinds = ("quantizable", "quantizable_modulation", "modulation", "other")
    return WeightCount(**{kind: left(kind) for kind in kinds})


def _runs(lists: Mapping[str, nn.Module], weights: Mapping[str, WeightCount]) -> list[_Run]:
    """Return the blocks in runs of equal ones of the same list."""
    runs: list[_Run] = []
    previous: Any = None
    for name, module in lists.items():
        shapes = tuple((key, tuple(p.shape), p.requires_grad) for key, p in module.named_parameters())
        signature = (name.rpartition(".")[0], type(module), weights[name], shapes)
        if signature != previous:
            runs.append(_Run())
        runs[-1].members.append((name, module))
        previous = signature
    return runs


def _shorten_lists(network: nn.Module, dropped: set[int]) -> None:
    """Remove blocks from the lists that they are in."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and any(id(item) in dropped for item in child):
                setattr(module, name, nn.ModuleList(item for item in child if id(item) not in dropped))


def _run(
    family: Family,
    network: nn.Module,
    kept: list[tuple[str, nn.Module, int]],
    latent_shape: tuple[int, ...],
    conditioning: Shapes,
    dtype: torch.dtype,
) -> dict[str, PassCount]:
    """Run one training step on fake tensors."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights = _fake_weights(network, mode)
    try:
        time = torch.tensor([500] if family.objective == "ddpm" else [500.0])
        masks = {
            name: torch.ones(1, *shape, dtype=kind)
            for name, (shape, kind) in conditioning.items()
            if not kind.is_floating_point
        }
        with mode, torch.enable_grad():
            latents = torch.empty(1, *latent_shape, dtype=dtype)
            cond = masks | {
                name: torch.empty(1, *shape, dtype=dtype)
                for name, (shape, kind) in conditioning.items()
                if kind.is_floating_point
            }
            inputs = [latents, time, *cond.values()]

            def forward() -> torch.Tensor:
                prediction = family.predict(network, latents, time, cond)
                return (
                    (prediction.float() - torch.empty_like(prediction, dtype=torch.float32)).square().mean()
                )

            return count_pass({name: module for name, module, _ in kept}, forward, weights, inputs)
    except Exception as error:  # any model code runs here
        raise CountError(f"this network does not run without weights: {error}") from error


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
