"""Adapters of two experts, which other programs read as two files with the names of a single network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.read import LoadedAdapter

HIGH_NOISE, LOW_NOISE = "transformer", "transformer_2"


@dataclass(frozen=True)
class ExpertAdapter:
    """The adapter of one expert: the suffix of its file, and the base model's component it belongs to."""

    suffix: str
    component: str
    adapter: LoadedAdapter


def split_experts(adapter: LoadedAdapter) -> Iterator[ExpertAdapter]:
    """Yield the adapter of each expert; a single network has an empty suffix.

    The first expert denoises at high noise levels, the second at low ones.
    """
    low_noise = adapter.component_deltas(LOW_NOISE)
    if not low_noise:
        yield ExpertAdapter("", HIGH_NOISE, adapter)
        return
    if high_noise := adapter.component_deltas(HIGH_NOISE):
        yield ExpertAdapter("high-noise", HIGH_NOISE, _as_single_network(adapter, high_noise, "high-noise"))
    yield ExpertAdapter("low-noise", LOW_NOISE, _as_single_network(adapter, low_noise, "low-noise"))


def _as_single_network(adapter: LoadedAdapter, deltas: dict[str, DeltaWeight], expert: str) -> LoadedAdapter:
    """Return the adapter of one expert, which its metadata names."""
    return replace(
        adapter,
        deltas={f"{HIGH_NOISE}.{module}": delta for module, delta in deltas.items()},
        lorakit_metadata=adapter.lorakit_metadata | {"expert": expert},
    )
