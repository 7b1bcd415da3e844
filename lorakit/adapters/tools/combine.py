"""Several adapters as one, and one adapter at another rank.

TIES: arXiv:2306.01708. DARE: arXiv:2311.03099.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorakit.adapters.formats import Adapter, Change, LowRank, Weights, low_rank
from lorakit.adapters.formats.verify import weight_for
from lorakit.core import rng
from lorakit.core.errors import ConfigError

METHODS = ("concatenate", "svd", "ties", "dare")


def combine(
    adapters: Sequence[tuple[Adapter, float]],
    method: str = "concatenate",
    *,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
    weights: Weights | None = None,
) -> dict[str, Change]:
    """The weighted sum of adapters, by module.

    `concatenate` is exact and adds the ranks up; `svd` keeps the best `rank` of the exact sum; `ties` keeps
    the largest `density` of each difference and lets the signs vote; `dare` drops all but `density` of it at
    random and scales the rest up. The last three end in LoRA of at most `rank` (default: the largest given).
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", remedy=f"known: {', '.join(METHODS)}")
    if not 0 < density <= 1:
        raise ConfigError("density must lie above 0 and at most at 1", where=f"density={density}")
    names = sorted({module for adapter, _ in adapters for module in adapter.changes})
    most = rank or max(change.rank for adapter, _ in adapters for change in adapter.changes.values())
    combined: dict[str, Change] = {}
    for module in names:
        given = [(a.changes[module], s) for a, s in adapters if module in a.changes]
        if len({_flat(change) for change, _ in given}) > 1:
            raise ConfigError("the adapters belong to models of different widths", where=module)
        if method in ("concatenate", "svd"):
            terms = [_low(c, s, weight_for(weights, module, c)) for c, s in given]
            total = low_rank.concatenated(terms)
            combined[module] = total if method == "concatenate" else low_rank.shortened(total, most)
        else:
            deltas = [s * c.delta(weight_for(weights, module, c)) for c, s in given]
            merged = _ties(deltas, density) if method == "ties" else _dare(deltas, density, seed, module)
            combined[module] = low_rank.nearest(merged, most)
    return combined


def _low(change: Change, strength: float, base: torch.Tensor | None) -> LowRank:
    return low_rank.lowered(change, base).scaled(strength)


def _flat(change: Change) -> tuple[int, int]:
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


def resize(
    changes: Mapping[str, Change],
    *,
    rank: int | None = None,
    energy: float | None = None,
    weights: Weights | None = None,
) -> tuple[dict[str, Change], dict[str, float]]:
    """Each change as the nearest LoRA of at most `rank`, or of the least that keeps `energy` (0 to 1) of its
    squared norm; with the share that each module kept."""
    if rank is None and energy is None:
        raise ConfigError("say how small", remedy="give --rank N or --energy 0.95")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError("the energy kept must lie above 0 and at most at 1", where=f"energy={energy}")
    smaller: dict[str, Change] = {}
    kept: dict[str, float] = {}
    for module, change in changes.items():
        base = weight_for(weights, module, change)
        if isinstance(change, LowRank):
            low = low_rank.shortened(change, rank, energy or 1.0)
        else:
            low = low_rank.nearest(change.delta(base), rank, energy or 1.0)
        smaller[module] = low
        kept[module] = 1 - low_rank.relative_error(change, low, base) ** 2
    return smaller, kept
