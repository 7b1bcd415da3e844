"""Plan a merge: which weights of a base model get which delta weights, and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lorakit.adapters import base_fit
from lorakit.adapters.formats import BaseWeights, LoadedAdapter
from lorakit.adapters.tools.weighted import WeightedAdapter, WeightedDelta
from lorakit.core.errors import ConfigError, first_line
from lorakit.models import families
from lorakit.models.base_model import MODEL_INDEX

DeltasByTensor = Mapping[str, Sequence[WeightedDelta]]


def plan_terms(
    base_weights: BaseWeights, adapters: Sequence[WeightedAdapter]
) -> dict[str, dict[str, list[WeightedDelta]]]:
    """Return component -> tensor name -> deltas to add; ConfigError before anything is written."""
    planned: dict[str, dict[str, list[WeightedDelta]]] = {}
    for weighted in adapters:
        adapter, wrong = _for_base(weighted.adapter, base_weights.folder), []
        for module, delta in adapter.deltas.items():
            try:
                key, shape = base_weights.tensor_key(module), base_weights.shape(module)
            except ConfigError as error:
                wrong.append(first_line(error))
                continue
            if not base_fit.shapes_match(delta.shape, shape):
                wrong.append(f"{module} has the shape {delta.shape}, the base model's weight {shape}")
                continue
            terms = planned.setdefault(key.component, {}).setdefault(key.tensor, [])
            terms.append(WeightedDelta(delta, weighted.strength))
        if wrong:
            raise ConfigError(
                f"the adapter does not fit this base model: {len(wrong)} of {len(adapter.deltas)} modules"
                f" differ, first {'; '.join(wrong[:5])}",
                where=f"{adapter.path or 'adapter'}, {base_weights.folder}",
                remedy="give the base model that it was trained on, or a fine-tune of that model",
            )
    return planned


def _for_base(adapter: LoadedAdapter, base: Path) -> LoadedAdapter:
    """Return an adapter with the component names of the base model; ConfigError for another family."""
    if (base / MODEL_INDEX).is_file():
        family = families.family_for_adapter(base, adapter.family)
        base_fit.require_related(adapter, family, adapter.path or base)
    return base_fit.assign_expert(adapter, {folder.name for folder in base.iterdir() if folder.is_dir()})


def add_deltas(weight: torch.Tensor, terms: Sequence[WeightedDelta]) -> torch.Tensor:
    """Return a weight with delta weights added: computed in float32, rounded once to its precision."""
    base = weight.float()
    total = base.clone()
    for term in terms:
        total += term.strength * term.delta.dense(base).reshape(base.shape)
    return total.to(weight.dtype)
