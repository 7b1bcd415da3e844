"""Estimates of the memory that a run needs, made without using it, and remedies if it is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.config.recipe import Recipe
from lorakit.core.errors import MemoryLimitError


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated sizes in bytes."""

    base_bytes: int
    adapter_bytes: int
    """Trainable parameters with their gradients and optimizer states."""
    activation_bytes: int | None
    """Activations of one image at the largest size; None if they cannot be counted."""
    gradient_checkpointing: bool


def _total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def activation_bytes(model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> int | None:
    """Count the bytes that `forward()` through `model` keeps for the backward pass.

    It runs on torch's fake tensors, which have shapes but no memory; None if the model cannot run on those.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
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
    denoiser: torch.nn.Module, optimizer: str, forward: Callable[[], torch.Tensor] | None = None
) -> MemoryEstimate:
    """Estimate the memory of a denoiser with its adapter; `forward` is a training step for one image."""
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    states = 2 if optimizer.endswith("8bit") else 8  # bytes for the two moments of each parameter
    frozen = _total_bytes(p for p in denoiser.parameters() if not p.requires_grad)
    adapter = 2 * _total_bytes(trained) + states * sum(p.numel() for p in trained)
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in denoiser.modules())
    activations = activation_bytes(denoiser, forward) if forward else None
    return MemoryEstimate(frozen, adapter, activations, checkpointing)


def format_bytes(count: float) -> str:
    """Format as GiB with two decimals, or as MiB below one GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def memory_limit_error(recipe: Recipe, estimate: MemoryEstimate, step: int, reason: str) -> MemoryLimitError:
    """Build the error for a step that does not fit one image at a time, with remedies and their sizes."""
    base, adapter = estimate.base_bytes, estimate.adapter_bytes
    parts = [f"base {format_bytes(base)}", f"adapter with optimizer {format_bytes(adapter)}"]
    remedies = []
    if estimate.activation_bytes is not None:
        parts.append(f"activations of one image {format_bytes(estimate.activation_bytes)}")
    size = estimate.activation_bytes or 0
    if not estimate.gradient_checkpointing:
        saved = f" (most of {format_bytes(size)})" if size else ""
        remedies.append(f"memory={{gradient_checkpointing: 1}} recomputes activations{saved}")
    if not recipe.quantized:
        remedies.append(f"memory={{quantize: nf4}} (base about {format_bytes(base * 0.28)})")
    smaller = max(64, round(recipe.resolution * 0.75) // 64 * 64)
    if smaller < recipe.resolution:
        share = (smaller / recipe.resolution) ** 2
        saved = f" (activations {format_bytes(size * share)})" if size else ""
        remedies.append(f"resolution={smaller}{saved}")
    if recipe.adapter.rank > 4:
        remedies.append(f"adapter.rank={recipe.adapter.rank // 2} (saves {format_bytes(adapter / 2)})")
    return MemoryLimitError(
        f"out of memory with one image at a time; estimated: {', '.join(parts)}\n  {reason}",
        where=f"step {step}",
        remedy="in a new run, " + "; or ".join(remedies),
    )


def empty_device_cache(device: Any) -> None:
    """Return cached blocks to the device, such as after a failed allocation; nothing on a CPU."""
    if torch.device(device).type != "cpu":
        torch.accelerator.empty_cache()
