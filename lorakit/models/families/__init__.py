"""Families of models. `detect_family` finds one by the pipeline class that a model folder names.

Every module of this package that defines a `Family` adds it to `FAMILIES`: a new family is one new file.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean
from lorakit.models.families.family import ATTENTION_TARGETS, Conditioning, Family
from lorakit.models.families.pipeline_folder import pipeline_name, weight_shapes
from lorakit.models.families.variants import refuse_variant

__all__ = [
    "ATTENTION_TARGETS",
    "FAMILIES",
    "Conditioning",
    "Family",
    "detect_family",
    "family_for_adapter",
    "family_table",
    "get_family",
    "weight_shapes",
]


def _discover_families() -> Iterator[Family]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            defined_here = inspect.isclass(value) and value.__module__ == module.name
            if defined_here and issubclass(value, Family) and not inspect.isabstract(value):
                yield value()


FAMILIES: tuple[Family, ...] = tuple(sorted(_discover_families(), key=lambda family: family.name))


DERIVED_ROW: dict[str, Any] = {
    "name": "derived",
    "title": "any other text-to-image pipeline of diffusers",
    "pipelines": [],
    "objective": "depends on its scheduler",
    "component": "transformer or unet",
    "targets": ATTENTION_TARGETS,
    "rank16_parameters": "",
    "license": "see the model's page",
    "tested": "against its own pipeline on the model itself, before training; refused if a check fails",
}


def family_table() -> list[dict[str, Any]]:
    """Return one row for each family; the last row is for pipelines without a family file."""
    return [*(family.describe() for family in FAMILIES), DERIVED_ROW]


def detect_family(folder: str | Path, conditioning_kinds: Collection[str] = ()) -> Family:
    """Return the family of a model folder: a family file's, or one derived from its pipeline.

    A dataset's `conditioning_kinds` ("source", "control", "mask") select a family that converts the model for
    them. Raises ConfigError if there is no family and none can be derived.
    """
    name = pipeline_name(Path(folder))
    for family in FAMILIES:
        spec = family.conditioning
        accepted = set(conditioning_kinds) <= set(spec.accepted)
        if conditioning_kinds and accepted and name in spec.converts_pipelines:
            return family
    for family in FAMILIES:
        if name in family.pipelines:
            return family
    refuse_variant(name, FAMILIES)
    from lorakit.models.families.derived.derived_family import derive_family

    return derive_family(Path(folder))


def family_for_adapter(folder: str | Path, name: str | None) -> Family:
    """Return the family of a model folder, or the adapter's family `name` if that converts the model."""
    for family in FAMILIES:
        if family.name == name and pipeline_name(Path(folder)) in family.conditioning.converts_pipelines:
            return family
    return detect_family(folder)


def get_family(name: str) -> Family:
    """Return the family with this name, as adapter files record it."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ConfigError(
        f"unknown family {name!r}{did_you_mean(name, (family.name for family in FAMILIES))}",
        remedy=f"known: {', '.join(family.name for family in FAMILIES)}",
    )
