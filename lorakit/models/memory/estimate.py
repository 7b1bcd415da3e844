"""Estimates of the memory that a run needs, made without using it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from lorakit.models.memory import placement


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated sizes in bytes."""

    base_bytes: int
    adapter_bytes: int
    """Trainable parameters with their gradients and optimizer states."""
    activation_bytes: int | None
    """Activations of one image at the largest size; None if they cannot be counted."""
    gradient_checkpointing: float
    """Share of the blocks that are recomputed."""
    other_bytes: int = 0
    """Other components that stay on the device: VAE, trained text encoders."""
    unknown_share: float = 1.0
    """Share of the activations that is left, where they cannot be counted."""

    @property
    def total_bytes(self) -> int:
        """Sum of all that can be counted."""
        return self.base_bytes + self.adapter_bytes + (self.activation_bytes or 0) + self.other_bytes

    def is_below(self, other: MemoryEstimate) -> bool:
        """Return True if this is less memory than `other`."""
        return (self.total_bytes, self.unknown_share) < (other.total_bytes, other.unknown_share)


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


def estimate_memory(
    denoiser: torch.nn.Module,
    optimizer: str,
    forward: Callable[[], torch.Tensor] | None = None,
    others: Iterable[torch.nn.Module] = (),
) -> MemoryEstimate:
    """Estimate the memory of a denoiser with its adapter, and of the `others` that are loaded beside it.

    `forward` is a training step for one image.
    """
    placed = placement.placement_of(denoiser)
    beside = [p for module in others for p in module.parameters()]
    trained = [p for p in (*denoiser.parameters(), *beside) if p.requires_grad]
    return MemoryEstimate(
        base_bytes=placed.device_bytes(denoiser)
        if placed
        else total_bytes(p for p in denoiser.parameters() if not p.requires_grad),
        adapter_bytes=trained_bytes(optimizer) * sum(p.numel() for p in trained),
        activation_bytes=activation_bytes(denoiser, forward) if forward else None,
        gradient_checkpointing=placed.checkpointing_share if placed else 0.0,
        other_bytes=total_bytes(p for p in beside if not p.requires_grad),
    )


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


def trained_bytes(optimizer: str) -> int:
    """Return the bytes of each trained parameter: itself and its gradient in float32, and its moments."""
    return 2 * 4 + optimizer_state_bytes(optimizer)
