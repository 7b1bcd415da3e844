"""Gradient checkpointing of any block: its activations are computed again for backward (arXiv:1604.06174).

It wraps the blocks themselves, because diffusers' own has gaps: none in HunyuanDiT, no mask in Chroma.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorakit.models.memory.host_modulation import ModulationTape


def recompute(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, preserve_rng: bool
) -> Any:
    """Return `forward(*args, **kwargs)` and keep only its inputs for the backward pass.

    Modulation that the host has computed is kept too, as it is small.
    """
    leaves, structure = torch.utils._pytree.tree_flatten((list(args), dict(kwargs)))
    positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    tape = ModulationTape()

    # as arguments of their own, tensors are saved as autograd saves them: checked, and open to hooks
    def run(*tensors: torch.Tensor) -> Any:
        inputs = list(rest)
        for position, tensor in zip(positions, tensors, strict=True):
            inputs[position] = tensor
        own_args, own_kwargs = torch.utils._pytree.tree_unflatten(inputs, structure)
        with tape.pass_through():
            return forward(*own_args, **own_kwargs)

    tensors = [leaves[position] for position in positions]
    return checkpoint(run, *tensors, use_reentrant=False, preserve_rng_state=preserve_rng)


def is_random(module: nn.Module) -> bool:
    """Return True if a block draws random numbers, which recomputing must repeat."""
    return any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in module.modules())
