"""What a run holds in memory, counted without needing that memory, and what would make it smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.config.recipe import Recipe
from lorakit.core.errors import MemoryLimitError


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. `activations` are those of one image at the largest size, None when they cannot be counted;
    `recomputed` tells whether gradient checkpointing is on."""

    base: int
    adapter: int
    activations: int | None
    recomputed: bool


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def activation_bytes(model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> int | None:
    """Bytes that the backward pass of `forward()` through `model` keeps, found with tensors that have shapes
    but no memory (torch's fake tensors); None where the model cannot run on those.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights = [mode.from_tensor(p) for p in model.parameters()]  # held: an address must stay taken
        own = {weight.untyped_storage()._cdata for weight in weights}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = forward()  # held, so that no storage is freed and its address counted twice
        except Exception:  # any model code runs here, and this is only an estimate for a message
            return None
    del result
    return sum(kept.values())


def estimate_memory(
    denoiser: torch.nn.Module, optimizer: str, forward: Callable[[], torch.Tensor] | None = None
) -> MemoryEstimate:
    """Count a denoiser with its adapter; gradients and optimizer states are counted with the adapter."""
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    states = 2 if optimizer.endswith("8bit") else 8  # bytes for the two moments of each number
    frozen = _bytes(p for p in denoiser.parameters() if not p.requires_grad)
    adapter = 2 * _bytes(trained) + states * sum(p.numel() for p in trained)
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in denoiser.modules())
    return MemoryEstimate(
        frozen, adapter, activation_bytes(denoiser, forward) if forward else None, recomputed
    )


def format_bytes(count: float) -> str:
    """1.23 GiB, or MiB below one."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def memory_limit_error(recipe: Recipe, found: MemoryEstimate, step: int, reason: str) -> MemoryLimitError:
    """The message for a step that does not fit even one image at a time, remedies with estimated sizes."""
    parts = [f"base {format_bytes(found.base)}", f"adapter with optimizer {format_bytes(found.adapter)}"]
    remedies = []
    if found.activations is not None:
        parts.append(f"activations of one image {format_bytes(found.activations)}")
    size = found.activations or 0
    if not found.recomputed:
        saved = f" (most of {format_bytes(size)})" if size else ""
        remedies.append(f"memory={{checkpoint: 1}} recomputes activations{saved}")
    if not recipe.quantized:
        remedies.append(f"memory={{quantize: nf4}} (base about {format_bytes(found.base * 0.28)})")
    smaller = max(64, round(recipe.resolution * 0.75) // 64 * 64)
    if smaller < recipe.resolution:
        share = (smaller / recipe.resolution) ** 2
        saved = f" (activations {format_bytes(size * share)})" if size else ""
        remedies.append(f"resolution={smaller}{saved}")
    if recipe.adapter.rank > 4:
        remedies.append(f"adapter.rank={recipe.adapter.rank // 2} (saves {format_bytes(found.adapter / 2)})")
    return MemoryLimitError(
        f"out of memory with one image at a time; estimated: {', '.join(parts)}\n  {reason}",
        where=f"step {step}",
        remedy="in a new run, " + "; or ".join(remedies),
    )


def empty_device_cache(device: Any) -> None:
    """Give cached blocks back to the device after a failed allocation."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
