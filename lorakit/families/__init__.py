"""Families of models. `find` picks one by the pipeline class that a model folder names."""

from __future__ import annotations

from pathlib import Path

from lorakit.bases import INDEX
from lorakit.errors import ConfigError
from lorakit.families.base import ATTENTION, Cond, Family
from lorakit.families.flux2 import Flux2
from lorakit.families.folder import pipeline_name, shapes
from lorakit.families.sd3 import StableDiffusion3
from lorakit.families.sd15 import StableDiffusion15

FAMILIES: tuple[Family, ...] = (StableDiffusion15(), StableDiffusion3(), Flux2())

__all__ = ["ATTENTION", "FAMILIES", "Cond", "Family", "by_name", "find", "shapes"]


def find(folder: str | Path) -> Family:
    """The family of a model folder; ConfigError lists the known pipelines when there is none."""
    name = pipeline_name(Path(folder))
    for family in FAMILIES:
        if name in family.pipelines:
            return family
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise ConfigError(f"no family for {name}", where=str(Path(folder) / INDEX), remedy=f"known: {known}")


def by_name(name: str) -> Family:
    """The family called `name`, as adapter files record it."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ConfigError(
        f"unknown family {name!r}", remedy=f"known: {', '.join(family.name for family in FAMILIES)}"
    )
