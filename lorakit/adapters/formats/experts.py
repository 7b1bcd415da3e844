"""Adapters of two experts, which other programs read as two files: each in the names of a single network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lorakit.adapters.formats.delta_weights import Change
from lorakit.adapters.formats.read import Adapter

FIRST, SECOND = "transformer", "transformer_2"


def parts(source: Adapter) -> Iterator[tuple[str, str, Adapter]]:
    """(what its file is called, component of the base, adapter) of each expert; a single network has no name.

    The first works at high noise levels, the second at low ones.
    """
    second = source.of(SECOND)
    if not second:
        yield "", FIRST, source
        return
    if first := source.of(FIRST):
        yield "high-noise", FIRST, _as_one(source, first)
    yield "low-noise", SECOND, _as_one(source, second)


def _as_one(source: Adapter, changes: dict[str, Change]) -> Adapter:
    return replace(source, changes={f"{FIRST}.{module}": change for module, change in changes.items()})
