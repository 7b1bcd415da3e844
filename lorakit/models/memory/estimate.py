"""Estimates of the memory that a run needs, made without using it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch

from lorakit.models.memory import placement


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the size of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def activation_bytes(model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> int | None:
    """Count the bytes that `forward()` through `model` keeps for the backward pass.

    It runs on torch's fake tensors, which have shapes but no memory; None if the model cannot run on those.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    placed = placement.placement_of(model)
    kept: dict[int, int] = {}
    with (
        placed.shapes_only() if placed else contextlib.nullcontext(),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        weights = [
            mode.from_tensor(p) for p in model.parameters()
        ]  # kept alive, so that no address is reused
        weight_storages = {weight.untyped_storage()._cdata for weight in weights}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weight_storages:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = forward()  # kept alive, so that no storage is freed and its address reused
        except Exception:  # any model code runs here, and this is only an estimate for a message
            return None
    del result
    return sum(kept.values())


_STATE_BYTES = {
    "adamw8bit": 2,
    "lion8bit": 1,
    "lion": 4,
    "ademamix8bit": 3,
    "adafactor": 0,  # rows and columns of a moment
    "came": 4,
    "muon": 4,
    "prodigy": 16,
}


def optimizer_state_bytes(optimizer: str) -> int:
    """Return the bytes that an optimizer keeps of each parameter; of an unknown one those of two moments."""
    return _STATE_BYTES.get(optimizer.removeprefix("paged_"), 8)
