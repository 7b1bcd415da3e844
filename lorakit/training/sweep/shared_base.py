"""Copies of networks that share one set of frozen weights."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lorakit.adapters import text_encoders
from lorakit.models.families.family import Family


def shared_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose modules are its own and whose weights and buffers are the same
    tensors: an adapter that is injected into the copy costs its own memory only."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def shared_pipeline(family: Family, pipe: Any) -> Any:
    """Return a pipeline with shared copies of the networks that can have an adapter.

    The scheduler, which remembers the timesteps of its last sampling, is a copy of its own.
    """
    networks = text_encoders.adaptable_networks(family, pipe)
    copied = copy.copy(pipe)
    parts: dict[str, Any] = {name: shared_copy(network) for name, network in networks.items()}
    copied.register_modules(**parts, scheduler=copy.deepcopy(pipe.scheduler))
    return copied
