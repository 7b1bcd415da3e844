"""The memory settings of a run: those of its recipe, and automatic values for what it leaves out."""

from __future__ import annotations

import torch

from lorakit.config.recipe import Recipe
from lorakit.models.memory import MemorySettings


def decide_memory(recipe: Recipe, device: torch.device) -> MemorySettings:
    """Return the settings of a run on a device; every key is decided."""
    config = recipe.memory_config
    checkpointing = config.gradient_checkpointing
    if checkpointing is None:
        checkpointing = float(device.type != "cpu")
    quantize = None if config.quantize is None or config.quantize == "none" else config.quantize
    return MemorySettings(quantize=quantize, gradient_checkpointing=checkpointing)
