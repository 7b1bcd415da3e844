"""Adapters and delta weights with a strength."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.adapters.formats import DeltaWeight, LoadedAdapter


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter, and the factor by which its delta weights are multiplied."""

    adapter: LoadedAdapter
    strength: float = 1.0


@dataclass(frozen=True)
class WeightedDelta:
    """A delta weight, and the factor by which it is multiplied."""

    delta: DeltaWeight
    strength: float
