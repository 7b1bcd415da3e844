"""Several adapters as one, and one adapter at another rank.

TIES: arXiv:2306.01708. DARE: arXiv:2311.03099.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorakit.adapters.formats import BaseWeights, DeltaWeight, LoadedAdapter, LoraDelta, low_rank
from lorakit.adapters.formats.verify import base_weight_for
from lorakit.core import rng
from lorakit.core.errors import ConfigError

COMBINE_METHODS = ("concatenate", "svd", "ties", "dare")


def combine_adapters(
    adapters: Sequence[tuple[LoadedAdapter, float]],
    method: str = "concatenate",
    *,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
    weights: BaseWeights | None = None,
) -> dict[str, DeltaWeight]:
    """The weighted sum of adapters, by module.

    `concatenate` is exact and adds the ranks up; `svd` keeps the best `rank` of the exact sum; `ties` keeps
    the largest `density` of each difference and lets the signs vote; `dare` drops all but `density` of it at
    random and scales the rest up. The last three end in LoRA of at most `rank` (default: the largest given).
    """
    if method not in COMBINE_METHODS:
        raise ConfigError(f"unknown method {method!r}", remedy=f"known: {', '.join(COMBINE_METHODS)}")
    if not 0 < density <= 1:
        raise ConfigError("density must lie above 0 and at most at 1", where=f"density={density}")
    names = sorted({module for adapter, _ in adapters for module in adapter.changes})
    most = rank or max(change.rank for adapter, _ in adapters for change in adapter.changes.values())
    combined: dict[str, DeltaWeight] = {}
    for module in names:
        given = [(a.changes[module], s) for a, s in adapters if module in a.changes]
        if len({_matrix_shape(change) for change, _ in given}) > 1:
            raise ConfigError("the adapters belong to models of different widths", where=module)
        if method in ("concatenate", "svd"):
            terms = [_scaled_lora(c, s, base_weight_for(weights, module, c)) for c, s in given]
            total = low_rank.concatenate(terms)
            combined[module] = total if method == "concatenate" else low_rank.reduce_rank(total, most)
        else:
            deltas = [s * c.delta(base_weight_for(weights, module, c)) for c, s in given]
            merged = _ties(deltas, density) if method == "ties" else _dare(deltas, density, seed, module)
            combined[module] = low_rank.nearest_lora(merged, most)
    return combined


def _scaled_lora(change: DeltaWeight, strength: float, base: torch.Tensor | None) -> LoraDelta:
    return low_rank.to_lora(change, base).scaled(strength)


def _matrix_shape(change: DeltaWeight) -> tuple[int, int]:
    return change.shape[0], int(torch.tensor(change.shape[1:]).prod())


def _ties(deltas: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """Trim each to its largest entries, elect a sign for each entry by mass, average those that agree."""
    stack = torch.stack([_trimmed(delta, density) for delta in deltas])
    sign = stack.sum(0).sign()
    agree = (stack.sign() == sign) & (stack != 0)
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


def _trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    kept = max(1, round(delta.numel() * density))
    least = delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(delta.abs() >= least, delta, 0)


def _dare(deltas: Sequence[torch.Tensor], density: float, seed: int, module: str) -> torch.Tensor:
    total = torch.zeros_like(deltas[0])
    for number, delta in enumerate(deltas):
        generator = rng.generator(seed, "dare", module, number)
        total += delta * (torch.rand(delta.shape, generator=generator) < density) / density
    return total


def resize_adapter(
    changes: Mapping[str, DeltaWeight],
    *,
    rank: int | None = None,
    energy: float | None = None,
    weights: BaseWeights | None = None,
) -> tuple[dict[str, DeltaWeight], dict[str, float]]:
    """Each change as the nearest LoRA of at most `rank`, or of the least that keeps `energy` (0 to 1) of its
    squared norm; with the share that each module kept."""
    if rank is None and energy is None:
        raise ConfigError("say how small", remedy="give --rank N or --energy 0.95")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError("the energy kept must lie above 0 and at most at 1", where=f"energy={energy}")
    smaller: dict[str, DeltaWeight] = {}
    kept: dict[str, float] = {}
    for module, change in changes.items():
        base = base_weight_for(weights, module, change)
        if isinstance(change, LoraDelta):
            low = low_rank.reduce_rank(change, rank, energy or 1.0)
        else:
            low = low_rank.nearest_lora(change.delta(base), rank, energy or 1.0)
        smaller[module] = low
        kept[module] = 1 - low_rank.relative_error(change, low, base) ** 2
    return smaller, kept
