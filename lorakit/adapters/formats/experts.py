"""Adapters of two experts, which other programs read as two files: each in the names of a single network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.read import LoadedAdapter

HIGH_NOISE, LOW_NOISE = "transformer", "transformer_2"


def split_experts(source: LoadedAdapter) -> Iterator[tuple[str, str, LoadedAdapter]]:
    """(what its file is called, component of the base, adapter) of each expert; a single network has no name.

    The first works at high noise levels, the second at low ones.
    """
    second = source.of(LOW_NOISE)
    if not second:
        yield "", HIGH_NOISE, source
        return
    if first := source.of(HIGH_NOISE):
        yield "high-noise", HIGH_NOISE, _as_single_network(source, first)
    yield "low-noise", LOW_NOISE, _as_single_network(source, second)


def _as_single_network(source: LoadedAdapter, changes: dict[str, DeltaWeight]) -> LoadedAdapter:
    return replace(source, changes={f"{HIGH_NOISE}.{module}": change for module, change in changes.items()})
