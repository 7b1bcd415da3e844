"""A network for a count or a measurement: without weights, with its adapter, with few of its equal blocks.

Of many equal blocks three are kept: the first, which may have inputs without gradients, the second, which
stands for the others, and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lorakit.models.families.family import Family
from lorakit.models.memory.blocks import repeated_blocks
from lorakit.planner.weights import WeightCount, count_weights

_KEPT = 3  # of a run of equal blocks
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and data type of each tensor of a sample's conditioning, without batch dimension."""


@dataclass(frozen=True)
class KeptBlock:
    """A block that is run, and the number of equal blocks that it stands for."""

    name: str
    module: nn.Module
    number: int


@dataclass(frozen=True)
class ShortNetwork:
    """A network on the meta device, with its adapter, of which the kept blocks are run."""

    module: nn.Module
    blocks: tuple[KeptBlock, ...]
    weights: Mapping[str, WeightCount]
    """Frozen weights of each block by its name."""
    whole: WeightCount
    """Frozen weights of the whole network, with all blocks."""
    trained: int
    """Trainable parameters of the whole network."""


def short_network(
    build: Callable[[], nn.Module],
    inject: Callable[[nn.Module], object],
    dtype: torch.dtype,
    *,
    shorten: bool,
) -> ShortNetwork:
    """Build a network with its adapter and remove equal blocks; `shorten=False` keeps all.

    `build` returns the network on the meta device, `inject` adds the adapter.
    """
    from lorakit import adapters

    network = build()
    lists = {block.name: block.module for block in repeated_blocks(network)}
    weights = {name: count_weights(network, name) for name in lists}
    whole = count_weights(network, "")
    inject(network)
    nn.Module.to(network, dtype)  # diffusers' own `to` warns of layers that it would keep in float32
    trained = sum(p.numel() for _, p in adapters.trainable_parameters(network))
    kept = [block for run in _runs(lists, weights) for block in run.kept(shorten=shorten)]
    dropped = {id(module) for module in lists.values()} - {id(block.module) for block in kept}
    _remove_blocks(network, dropped)
    return ShortNetwork(network, tuple(kept), weights, whole, trained)


def pass_inputs(
    family: Family, latent_shape: tuple[int, ...], conditioning: Shapes, dtype: torch.dtype, images: int = 1
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return latents (images, C, ..., H, W), timesteps (images,) and conditioning of a pass.

    Timesteps and masks have values, which the code of many networks reads; the rest is uninitialized.
    """
    with torch.utils._python_dispatch._disable_current_modes():
        time = torch.tensor([500 if family.objective == "ddpm" else 500.0] * images)
        masks = {
            name: torch.ones(images, *shape, dtype=dtype if kind.is_floating_point else kind)
            for name, (shape, kind) in conditioning.items()
            if "mask" in name or not kind.is_floating_point
        }
    latents = torch.empty(images, *latent_shape, dtype=dtype)
    cond = masks | {
        name: torch.empty(images, *shape, dtype=dtype)
        for name, (shape, _) in conditioning.items()
        if name not in masks
    }
    return latents, time, cond


@dataclass
class _Run:
    """Equal blocks in a row."""

    members: list[tuple[str, nn.Module]] = field(default_factory=list)

    def kept(self, *, shorten: bool) -> list[KeptBlock]:
        if not shorten or len(self.members) <= _KEPT:
            return [KeptBlock(name, module, 1) for name, module in self.members]
        first, second, last = self.members[0], self.members[1], self.members[-1]
        return [KeptBlock(*first, 1), KeptBlock(*second, len(self.members) - 2), KeptBlock(*last, 1)]


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


def _remove_blocks(network: nn.Module, dropped: set[int]) -> None:
    """Remove blocks from the lists that they are in."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and any(id(item) in dropped for item in child):
                setattr(module, name, nn.ModuleList(item for item in child if id(item) not in dropped))
