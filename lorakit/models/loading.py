"""Parts of a base in memory: text encoders for as long as they are needed, networks whole or in few bits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorakit.models import memory, quantize
from lorakit.models.families.family import Family
from lorakit.models.families.pipeline_folder import pipeline_components

T = TypeVar("T")


def text_components(family: Family, base: Path) -> set[str]:
    """The components of a base that encode text."""
    return {part for part in pipeline_components(base) if part.startswith(family.text_parts)}


def run_with_text_encoders(
    family: Family,
    base: Path,
    work: Callable[[Any], T],
    *,
    dtype: torch.dtype,
    device: torch.device,
    say: Callable[[str], None],
) -> T:
    """What `work` makes of a pipeline that has only text encoders, which are loaded for just this.

    They are the largest part of some bases; where they do not fit `device`, the processor does the work,
    which must be one that can be done again.
    """
    parts = text_components(family, base)
    try:
        return work(family.load(base, dtype=dtype, device=device, only=parts))
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    finally:
        free_memory(device)
    say("the text encoders do not fit this device: the processor encodes the texts, once")
    return work(family.load(base, dtype=dtype, only=parts))


def load_components(
    family: Family,
    base: Path,
    parts: Collection[str] | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    kind: str | None = None,
    compute: torch.dtype | None = None,
) -> Any:
    """A pipeline of some `parts`; its denoiser in few bits of a `kind` that `quantize.swap` knows, whose
    products are computed in `compute`. The device then never holds the whole of it."""
    if not kind:
        return family.load(base, dtype=dtype, device=device, only=parts)
    pipe = family.load(base, dtype=dtype, only=parts)
    quantize.quantize_linear_layers(family.denoiser(pipe), kind, device, compute or dtype)
    return pipe.to(device)


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    memory.empty_device_cache(device)
