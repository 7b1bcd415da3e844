"""Plan adapters before weights are read: a base model's networks on the meta device, and their adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lorakit.adapters import text_encoders
from lorakit.adapters.targets import AdapterSpec
from lorakit.config.recipe import Recipe
from lorakit.models.families.family import Family
from lorakit.models.families.pipeline_folder import pipeline_components


@dataclass(frozen=True)
class PlannedAdapters:
    """The networks that can have an adapter, on the meta device, and the adapters of those that get one."""

    networks: dict[str, nn.Module]
    specs: dict[str, AdapterSpec]


def meta_networks(family: Family, base_folder: Path) -> dict[str, nn.Module]:
    """Return the networks of a base model that can have an adapter, by component, without their weights."""
    present = pipeline_components(base_folder)
    parts = [family.components.denoiser, *family.components.experts, *family.text.trainable_encoders]
    return {name: family.meta_network(base_folder, name) for name in parts if name in present}


def plan_adapters(
    recipe: Recipe, family: Family, base_folder: Path, log: Callable[[str], None]
) -> PlannedAdapters:
    """Return the recipe's adapters for a base model; `log` gets the number of modules of each entry.

    Raises ConfigError for an entry that matches no module.
    """
    networks = meta_networks(family, base_folder)
    return PlannedAdapters(networks, text_encoders.adapter_specs(recipe, family, networks, log))
