"""The frozen weights of a network divided among processes (FSDP2): each keeps a part of every block.

Before a block computes, its processes exchange their parts; afterwards they are dropped again. Only frozen
matrices of the repeated blocks are divided. Adapters stay whole in every process, because they are trained in
one flat buffer whose gradients are averaged once a step; so do the few weights outside the blocks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn

from lorakit.models.memory.blocks import repeated_blocks
from lorakit.models.memory.settings import MemorySettings

USE_FSDP_VARIABLE = "ACCELERATE_USE_FSDP"
"""Set by `accelerate launch --use_fsdp`, and by a configuration of `accelerate config` with FSDP."""


def is_requested(setting: bool | None) -> bool:
    """Return True if the recipe's `memory.shard`, or accelerate where the recipe leaves it out, says so."""
    if setting is not None:
        return setting
    return os.environ.get(USE_FSDP_VARIABLE, "").lower() in ("1", "true", "yes")


def with_whole_weights(settings: MemorySettings) -> MemorySettings:
    """Return memory settings without those that sharding replaces: the planner may have chosen them."""
    return replace(settings, quantize=None, stream=0.0, offload_modulation=False, offload_activations=False)


def is_sharded(network: nn.Module) -> bool:
    """Return True if `shard_network` has divided a network."""
    return bool(getattr(network, "_lorakit_sharded", False))


def shard_network(network: nn.Module, device: torch.device) -> None:
    """Divide the blocks of a network with its adapters among all processes, block by block.

    The network may lie in main memory: what stays whole is moved to `device`, and of each block only this
    process's part stays there. Forward and backward passes are then exchanges of all processes, which must
    make as many of them, in the same order.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in repeated_blocks(network):
        divided = set(map(id, _divided_parameters(block.module)))
        whole = {parameter for parameter in block.module.parameters() if id(parameter) not in divided}
        _move(whole, block.module, device)
        if divided:
            fully_shard(block.module, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    _move(list(_undivided(network)), network, device)
    object.__setattr__(network, "_lorakit_sharded", True)


def shard_bytes(network: nn.Module) -> int:
    """Return the bytes of the frozen weights that this process keeps."""
    from torch.distributed.tensor import DTensor

    tensors = (parameter for parameter in network.parameters() if not parameter.requires_grad)
    own = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def _divided_parameters(block: nn.Module) -> list[nn.Parameter]:
    """Return the frozen matrices of a block in its most frequent data type; an exchange has only one."""
    frozen = [p for p in block.parameters() if not p.requires_grad and p.ndim > 1 and p.is_floating_point()]
    sizes = Counter[torch.dtype]()
    for parameter in frozen:
        sizes[parameter.dtype] += parameter.numel()
    return [p for p in frozen if p.dtype == sizes.most_common(1)[0][0]]


def _undivided(network: nn.Module) -> Iterator[nn.Parameter]:
    from torch.distributed.tensor import DTensor

    return (parameter for parameter in network.parameters() if not isinstance(parameter, DTensor))


def _move(parameters: Iterable[nn.Parameter], module: nn.Module, device: torch.device) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(device)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
