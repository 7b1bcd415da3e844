"""The repeated blocks of a denoiser: the units that are streamed, recomputed and offloaded.

A transformer's are the items of its block lists. A U-Net's are smaller: residual blocks and the transformer
blocks inside its attentions, because one level of a U-Net may hold half of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from lorakit.models.memory import tensor_places

_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """One block of a network, by its name in it."""

    name: str
    module: nn.Module


def repeated_blocks(network: nn.Module) -> list[Block]:
    """Return the repeated blocks in the order in which the network registers them; none contains another.

    That is the order of execution except in U-Nets, and where refiners of text and image are independent.
    """
    return list(_find_blocks(network, "", inside_list=False))


def _find_blocks(module: nn.Module, prefix: str, *, inside_list: bool) -> Iterator[Block]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, _LISTS):
            yield from _blocks_of_list(child, path)
        elif not inside_list:  # a block's own parts (feed-forward, experts) are not blocks
            yield from _find_blocks(child, f"{path}.", inside_list=False)


def _blocks_of_list(modules: nn.Module, path: str) -> Iterator[Block]:
    if not any(_weighted_layers(item) >= 2 for item in modules.children()):
        return  # a list of layers, such as an output projection with its dropout
    for name, item in modules.named_children():
        item_path = f"{path}.{name}"
        if isinstance(item, _LISTS):
            yield from _blocks_of_list(item, item_path)
        elif inner := list(_find_blocks(item, f"{item_path}.", inside_list=True)):
            yield from inner
        elif _weighted_layers(item):
            yield Block(item_path, item)


def _weighted_layers(module: nn.Module) -> int:
    """Count the layers without children that have parameters."""
    return sum(bool(m._parameters) and not m._modules for m in module.modules())


def block_bytes(network: nn.Module) -> dict[str, int]:
    """Return the bytes of each block's frozen weights in their present form, such as quantized."""
    return {block.name: tensor_places.frozen_bytes(block.module) for block in repeated_blocks(network)}


def spread_blocks(blocks: Sequence[Block], share: float) -> list[Block]:
    """Choose blocks that hold `share` of the weights of all, spread evenly.

    Between two blocks that are transferred, others are computed that need no transfer.
    """
    if share >= 1:
        return list(blocks)
    chosen, owed = [], 0.0
    for block in blocks:
        size = tensor_places.frozen_bytes(block.module)
        owed += share * size
        if owed >= size / 2 and share > 0:
            chosen.append(block)
            owed -= size
    return chosen


def narrowest_blocks(blocks: Sequence[Block], share: float) -> list[Block]:
    """Choose `share` of the blocks, those first that keep most activations for the time of recomputing them.

    Per token a layer keeps its inputs and costs inputs times outputs, so narrow blocks are cheap, which in a
    U-Net are those of high resolution. Of equal blocks the first are chosen: when the backward pass arrives
    there, the activations of the later ones are free already, so that recomputing a block adds nothing to
    the peak.
    """
    count = math.ceil(share * len(blocks) - 1e-9)
    order = sorted(range(len(blocks)), key=lambda index: _width(blocks[index].module))
    return [blocks[index] for index in sorted(order[:count])]


def _width(module: nn.Module) -> int:
    """Return the most inputs that a layer of a block has, in features or channels."""
    widths = (getattr(m, "in_features", 0) or getattr(m, "in_channels", 0) for m in module.modules())
    return max((width for width in widths if isinstance(width, int)), default=0)
