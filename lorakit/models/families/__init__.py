"""Families of models. `find` picks one by the pipeline class that a model folder names.

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
from lorakit.models.families.family import ATTENTION_TARGETS, Conditioning, Family
from lorakit.models.families.pipeline_folder import pipeline_name, weight_shapes

__all__ = [
    "ATTENTION_TARGETS",
    "FAMILIES",
    "Conditioning",
    "Family",
    "detect_family",
    "family_for_adapter",
    "family_table",
    "format_family_table",
    "get_family",
    "weight_shapes",
]


def _discover_families() -> Iterator[Family]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(value) and value.__module__ == module.name
            if own and issubclass(value, Family) and not inspect.isabstract(value):
                yield value()


FAMILIES: tuple[Family, ...] = tuple(sorted(_discover_families(), key=lambda family: family.name))


DERIVED_ROW: dict[str, Any] = {
    "name": "derived",
    "title": "any other text-to-image pipeline of diffusers",
    "pipelines": [],
    "objective": "as its scheduler says",
    "component": "transformer or unet",
    "targets": ATTENTION_TARGETS,
    "rank16": "",
    "licence": "see the model's page",
    "tested": "on the model itself against its pipeline, before it is trained; refused where a check fails",
}


def family_table() -> list[dict[str, Any]]:
    """What is known of each family; the last row is for pipelines without one."""
    return [*(family.describe() for family in FAMILIES), DERIVED_ROW]


def format_family_table(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    lines = ["Numbers in an adapter of rank 16 take 4 bytes each in its file.", ""]
    for row in rows:
        own = "attention" if row["targets"] == ATTENTION_TARGETS else "attention, by names of its own"
        size = f"; rank 16: {row['rank16']}" if row["rank16"] else ""
        lines += [
            f"{row['name']:15} {row['title']}",
            f"{'':15} {row['objective']}; targets: {own}{size}",
            f"{'':15} licence: {row['licence']}",
            f"{'':15} tested: {row['tested']}",
        ]
    return "\n".join(lines)


def detect_family(folder: str | Path, kinds: Collection[str] = ()) -> Family:
    """The family of a model folder: its own, or one derived by probing; ConfigError when neither goes.

    `kinds` are those of the pictures that a dataset gives: a family that widens the model for them is taken.
    """
    name = pipeline_name(Path(folder))
    for family in FAMILIES:
        if kinds and name in family.widens and set(kinds) <= set(family.takes):
            return family
    for family in FAMILIES:
        if name in family.pipelines:
            return family
    from lorakit.models.families.derived.derived_family import derive_family

    return derive_family(Path(folder))


def family_for_adapter(folder: str | Path, name: str | None) -> Family:
    """The family of a model folder, or the one called `name` where that widens the model: an adapter's."""
    widening = next((f for f in FAMILIES if f.name == name and pipeline_name(Path(folder)) in f.widens), None)
    return widening or detect_family(folder)


def get_family(name: str) -> Family:
    """The family called `name`, as adapter files record it."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ConfigError(
        f"unknown family {name!r}", remedy=f"known: {', '.join(family.name for family in FAMILIES)}"
    )
