"""The strength of an exported adapter: multiplied into its weights, or recorded for whoever uses the file."""

from __future__ import annotations

from dataclasses import replace

from lorakit.adapters.formats.delta_weights import DeltaWeight, FullDelta, LohaDelta, LokrDelta, LoraDelta
from lorakit.adapters.formats.read import LoadedAdapter
from lorakit.core.errors import ConfigError

RECORDED, APPLIED = "strength", "applied_strength"  # keys of lorakit's metadata


def is_exactly_scalable(adapter: LoadedAdapter) -> bool:
    """Return True if a factor on the weights is the same as a strength: LoRA, LoHa, LoKr and full weights.

    DoRA and OFT do not add to a weight, and the vectors of a new token are blended with vectors that are not
    in the file.
    """
    linear = (LoraDelta, LohaDelta, LokrDelta, FullDelta)
    return not adapter.embeddings and all(isinstance(delta, linear) for delta in adapter.deltas.values())


def with_strength(adapter: LoadedAdapter, strength: float, *, apply: bool = False) -> LoadedAdapter:
    """Return the adapter with a strength in its metadata, or multiplied into its weights (`apply`).

    Raises ConfigError if it cannot be multiplied into them exactly.
    """
    if strength == 1:
        return adapter
    if not apply:
        return replace(adapter, lorakit_metadata=adapter.lorakit_metadata | {RECORDED: strength})
    if not is_exactly_scalable(adapter):
        what = "a new token" if adapter.embeddings else adapter.method
        raise ConfigError(
            f"the strength of {what} cannot be multiplied into the file",
            where=str(adapter.path or "adapter"),
            remedy=f"leave out --apply-strength, and use the file at strength {strength:g} in the program",
        )
    deltas = {module: _scaled(delta, strength) for module, delta in adapter.deltas.items()}
    metadata = adapter.lorakit_metadata | {APPLIED: strength}
    return replace(adapter, deltas=deltas, lorakit_metadata=metadata)


def _scaled(delta: DeltaWeight, factor: float) -> DeltaWeight:
    return (
        replace(delta, weight=delta.weight * factor) if isinstance(delta, FullDelta) else delta.scaled(factor)
    )
