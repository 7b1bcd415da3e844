"""Families of models. `find` picks one by the pipeline class that a model folder names.

Every module of this package that defines a `Family` adds it to `FAMILIES`: a new family is one new file.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from lorakit.errors import ConfigError
from lorakit.families.base import ATTENTION, Cond, Family
from lorakit.families.folder import pipeline_name, shapes

__all__ = ["ATTENTION", "FAMILIES", "Cond", "Family", "by_name", "find", "shapes"]


def _defined() -> Iterator[Family]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(value) and value.__module__ == module.name
            if own and issubclass(value, Family) and not inspect.isabstract(value):
                yield value()


FAMILIES: tuple[Family, ...] = tuple(sorted(_defined(), key=lambda family: family.name))


def find(folder: str | Path) -> Family:
    """The family of a model folder: its own, or one derived by probing; ConfigError when neither goes."""
    name = pipeline_name(Path(folder))
    for family in FAMILIES:
        if name in family.pipelines:
            return family
    from lorakit.families.derived.family import derive

    return derive(Path(folder))


def by_name(name: str) -> Family:
    """The family called `name`, as adapter files record it."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ConfigError(
        f"unknown family {name!r}", remedy=f"known: {', '.join(family.name for family in FAMILIES)}"
    )
