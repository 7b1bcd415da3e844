"""Combine several adapters into one, and resize an adapter to another rank.

TIES: arXiv:2306.01708. DARE: arXiv:2311.03099.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft.utils import merge_utils

from lorakit.adapters.formats import BaseWeights, DeltaWeight, LoadedAdapter, LoraDelta, low_rank
from lorakit.adapters.formats.export import require_family
from lorakit.adapters.formats.verify import base_weight_for
from lorakit.adapters.tools.weighted import WeightedAdapter, WeightedDelta
from lorakit.core import rng
from lorakit.core.errors import ConfigError

COMBINE_METHODS = ("concatenate", "svd", "ties", "dare", "dare-ties")


@dataclass(frozen=True)
class ReducedAdapter:
    """A LoRA of low rank, and the share of the squared norm that each module retained (0 to 1)."""

    adapter: LoadedAdapter
    retained_energy: dict[str, float]


def combine_adapters(
    adapters: Sequence[WeightedAdapter],
    method: str = "concatenate",
    *,
    max_rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
    base_weights: BaseWeights | None = None,
) -> LoadedAdapter:
    """Return the weighted sum of adapters of one family as a LoRA.

    `concatenate` is exact, and its rank is the sum of the ranks; `svd` keeps the best `max_rank` of the exact
    sum; `ties` keeps the largest `density` of each difference and elects signs; `dare` drops all but
    `density` of it at random and rescales the rest; `dare-ties` drops at random and elects signs. All but the
    first have at most `max_rank` (default: the largest rank of the adapters). `base_weights` are needed for
    DoRA and OFT.
    Raises ConfigError for an unknown method, a density outside (0, 1], and adapters of different models.
    """
    if method not in COMBINE_METHODS:
        raise ConfigError(f"unknown method {method!r}", remedy=f"known: {', '.join(COMBINE_METHODS)}")
    if not 0 < density <= 1:
        raise ConfigError("density must be above 0 and at most 1", where=f"density={density}")
    families = {require_family(weighted.adapter) for weighted in adapters}
    if len(families) > 1:
        raise ConfigError(
            f"the adapters belong to different families: {', '.join(sorted(families))}",
            remedy="combine adapters of one family",
        )
    all_deltas = [delta for weighted in adapters for delta in weighted.adapter.deltas.values()]
    rank_limit = max_rank or max(delta.rank for delta in all_deltas)
    combined: dict[str, DeltaWeight] = {}
    for module in sorted({module for weighted in adapters for module in weighted.adapter.deltas}):
        terms = [
            WeightedDelta(weighted.adapter.deltas[module], weighted.strength)
            for weighted in adapters
            if module in weighted.adapter.deltas
        ]
        if len({_matrix_shape(term.delta) for term in terms}) > 1:
            raise ConfigError(
                "the adapters belong to models of different widths",
                where=module,
                remedy="combine adapters of one base model",
            )
        if method in ("concatenate", "svd"):
            loras = [_scaled_lora(term, base_weight_for(base_weights, module, term.delta)) for term in terms]
            total = low_rank.concatenate(loras)
            combined[module] = total if method == "concatenate" else low_rank.reduce_rank(total, rank_limit)
        else:
            matrices = [
                term.strength * term.delta.dense(base_weight_for(base_weights, module, term.delta))
                for term in terms
            ]
            merged = _merge_dense(matrices, method, density, (seed, "dare", module))
            combined[module] = low_rank.nearest_lora(merged, rank_limit)
    return LoadedAdapter(combined, "diffusers", possible_families=tuple(families))


def _scaled_lora(term: WeightedDelta, base: torch.Tensor | None) -> LoraDelta:
    return low_rank.to_lora(term.delta, base).scaled(term.strength)


def _matrix_shape(delta: DeltaWeight) -> tuple[int, int]:
    return delta.shape[0], int(torch.tensor(delta.shape[1:]).prod())


def _merge_dense(
    matrices: Sequence[torch.Tensor], method: str, density: float, keys: tuple[int | str, ...]
) -> torch.Tensor:
    """Merge delta weights by `ties`, `dare` or `dare-ties`, from the parts that peft has for it.

    `keys` are those of the random entries that DARE drops.
    """
    kept = [_prune(matrix, method, density, (*keys, number)) for number, matrix in enumerate(matrices)]
    stack = torch.stack(kept)
    if method == "dare":
        return stack.sum(0)
    # peft elects the positive sign where the sum is exactly zero; by the paper no entry agrees with it there
    agrees = merge_utils.calculate_majority_sign_mask(stack) & (stack.sum(0) != 0)
    return merge_utils.disjoint_merge(stack, agrees)


def _prune(matrix: torch.Tensor, method: str, density: float, keys: tuple[int | str, ...]) -> torch.Tensor:
    """Keep the largest entries (`ties`), or random ones, scaled so that the mean stays the same."""
    if density >= 1:
        return matrix
    if method == "ties":
        return merge_utils.prune(matrix, max(density, 1 / matrix.numel()), "magnitude")
    with torch.random.fork_rng(devices=()):  # peft draws from torch's global generator
        seed, purpose, *parts = keys
        torch.default_generator.manual_seed(rng.derive_seed(int(seed), str(purpose), *parts))
        return merge_utils.prune(matrix, density, "random", rescale=True)


def resize_adapter(
    adapter: LoadedAdapter,
    *,
    max_rank: int | None = None,
    energy: float | None = None,
    base_weights: BaseWeights | None = None,
) -> ReducedAdapter:
    """Return each delta as the nearest LoRA of at most `max_rank`, or of the smallest rank that retains
    `energy` (0 to 1) of the squared norm.

    Raises ConfigError without either, and for an energy outside (0, 1].
    """
    check_rank_or_energy(max_rank, energy)
    deltas: dict[str, DeltaWeight] = {}
    retained_energy: dict[str, float] = {}
    for module, delta in adapter.deltas.items():
        base = base_weight_for(base_weights, module, delta)
        if isinstance(delta, LoraDelta):
            lora = low_rank.reduce_rank(delta, max_rank, energy or 1.0)
        else:
            lora = low_rank.nearest_lora(delta.dense(base), max_rank, energy or 1.0)
        deltas[module] = lora
        retained_energy[module] = 1 - low_rank.relative_error(delta, lora, base) ** 2
    resized = replace(adapter, deltas=deltas, layout="diffusers", metadata={}, embeddings={})
    return ReducedAdapter(resized, retained_energy)


def check_rank_or_energy(max_rank: int | None, energy: float | None) -> None:
    """Raise ConfigError unless a rank or an energy above 0 and at most 1 is given."""
    if max_rank is None and energy is None:
        raise ConfigError(
            "neither a rank nor an energy is given", remedy="give --max-rank N or --energy 0.95"
        )
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError("the energy must be above 0 and at most 1", where=f"energy={energy}")
