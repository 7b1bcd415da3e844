"""Loading of a base model's components: text encoders while they are needed, quantized denoisers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorakit.models import memory, vae
from lorakit.models.families.family import Family
from lorakit.models.families.pipeline_folder import pipeline_components
from lorakit.models.memory import placement
from lorakit.models.quantized_network import QuantizedLoader

T = TypeVar("T")

_PLAIN = memory.MemorySettings()


def text_components(family: Family, base_folder: Path) -> set[str]:
    """Return the names of a base model's components that encode text."""
    prefixes = family.text.component_prefixes
    return {name for name in pipeline_components(base_folder) if name.startswith(prefixes)}


def conditioning_components(family: Family, base_folder: Path) -> set[str]:
    """Return the names of the components that encode conditioning images."""
    present = pipeline_components(base_folder)
    return {"vae", *(name for name in family.components.image_encoders if name in present)}


def sampling_components(family: Family, base_folder: Path) -> set[str]:
    """Return the names of the components that sampling needs besides the denoiser and the text encoders."""
    return {*conditioning_components(family, base_folder), *family.components.sampling_only}


def run_with_text_encoders(
    family: Family,
    base_folder: Path,
    work: Callable[[Any], T],
    *,
    dtype: torch.dtype,
    device: torch.device,
    log: Callable[[str], None],
) -> T:
    """Return `work(pipe)` for a pipeline with text encoders only, which are loaded for this call.

    They are the largest part of some base models: if they do not fit `device`, `work` runs again on the CPU,
    so it must be repeatable.
    """
    components = text_components(family, base_folder)
    try:
        return work(family.load(base_folder, dtype=dtype, device=device, only=components))
    except (RuntimeError, MemoryError) as error:
        if device.type == "cpu" or not memory.is_out_of_memory(error):
            raise
    finally:
        free_memory(device)
    log("the text encoders do not fit this device: the CPU encodes the texts, once")
    return work(family.load(base_folder, dtype=dtype, only=components))


def load_text_encoders(
    family: Family,
    base_folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    log: Callable[[str], None],
) -> Any:
    """Return a pipeline with text encoders only, on the CPU if they do not fit `device`."""
    components = text_components(family, base_folder)
    try:
        return family.load(base_folder, dtype=dtype, device=device, only=components)
    except (RuntimeError, MemoryError) as error:
        if device.type == "cpu" or not memory.is_out_of_memory(error):
            raise
    free_memory(device)
    log("the text encoders do not fit this device: the CPU encodes the texts")
    return family.load(base_folder, dtype=dtype, only=components)


def load_components(
    family: Family,
    base_folder: Path,
    components: Collection[str] | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    settings: memory.MemorySettings = _PLAIN,
    compute_dtype: torch.dtype | None = None,
) -> Any:
    """Load a pipeline with some components; None: all that sampling needs.

    `settings` say how the denoiser is quantized, tensor by tensor, so that neither the device nor the host
    ever holds all of it in full; it computes in `compute_dtype` (default: `dtype`). With float16, the VAE
    computes in float32 nevertheless. If its weights are to wait in host memory, the denoiser is loaded there:
    `memory.placement.place` moves the rest of it once it has its adapter.
    """
    loaders = {}
    if settings.quantize is not None:
        loader = QuantizedLoader(base_folder, settings.quantize, compute_dtype or dtype, device)
        loaders = dict.fromkeys(family.denoiser_components(base_folder), loader)
    waits = placement.waits_in_host_memory(settings)
    pipe = family.load(
        base_folder, dtype=dtype, device="cpu" if waits else device, only=components, loaders=loaders
    )
    if waits:
        _move_others(family, base_folder, pipe, device)
    if torch.float16 in (dtype, compute_dtype) and getattr(pipe, "vae", None) is not None:
        vae.compute_in_float32(pipe.vae)
    return pipe


def _move_others(family: Family, base_folder: Path, pipe: Any, device: torch.device) -> None:
    """Move all networks but the denoiser to a device."""
    denoisers = family.denoiser_components(base_folder)
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module) and name not in denoisers:
            component.to(device)


def free_memory(device: torch.device) -> None:
    """Free what is no longer referenced, on the device too."""
    gc.collect()
    memory.empty_device_cache(device)
