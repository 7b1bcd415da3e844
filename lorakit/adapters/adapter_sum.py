"""The weighted sum of adapters of any origin and method, injected into a base model as one LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lorakit.adapters import base_fit, delta_parameters, textual_inversion
from lorakit.adapters.formats import DeltaWeight, LoadedAdapter, LoraDelta, low_rank
from lorakit.adapters.injection import NO_ADAPTER, inject_adapter
from lorakit.adapters.targets import AdapterSpec
from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Family


def add_tokens(family: Family, pipe: Any, adapters: Sequence[tuple[LoadedAdapter, float]]) -> None:
    """Add the new tokens of adapters to a pipeline, with their vectors at the adapter's strength.

    Raises ConfigError if two adapters have the same token, or if the base model cannot add one.
    """
    from lorakit.adapters import text_encoders

    tokens: set[str | None] = set()
    for adapter, strength in adapters:
        if not adapter.embeddings:
            continue
        if adapter.token in tokens:
            raise ConfigError(
                f"two adapters have the new token {adapter.token!r}", remedy="use only one of them"
            )
        tokens.add(adapter.token)
        text_encoders.add_saved_token(family, pipe, adapter.lorakit_metadata)
        for component, vectors in adapter.embeddings.items():
            embedding = getattr(pipe, component).get_input_embeddings()
            embedding.learned.data.copy_(vectors)
            embedding.strength = strength


def load_adapter_sum(
    networks: Mapping[str, nn.Module], adapters: Sequence[tuple[LoadedAdapter, float]]
) -> None:
    """Inject the sum of the delta weights of adapters, each times its strength, into networks without any.

    The sum is exact: LoRA, LoHa and LoKr by their factors, other methods as whole matrices. New tokens must
    have been added before. Raises ConfigError if an adapter does not fit.
    """
    layers = base_fit.full_module_names(networks)
    terms: dict[tuple[str, str], list[LoraDelta]] = {}
    for adapter, strength in adapters:
        base_fit.require_fit(adapter.deltas, networks, str(adapter.path or "adapter"))
        for name, delta in adapter.deltas.items():
            component, module = layers[name]
            layer = networks[component].get_submodule(module)
            lora = _exact_lora(delta, delta_parameters.base_weight(layer) if delta.needs_base else None)
            terms.setdefault((component, module), []).append(lora.scaled(strength))
    for component, network in networks.items():
        sums = {
            module: low_rank.concatenate(loras)
            for (of_component, module), loras in terms.items()
            if of_component == component
        }
        if sums:
            _inject_loras(network, sums)
        elif any(textual_inversion.learned_embeddings(network)):
            inject_adapter(network, spec=AdapterSpec(NO_ADAPTER, 1, 1, ()))


def _inject_loras(network: nn.Module, loras: Mapping[str, LoraDelta]) -> None:
    ranks = {module: lora.rank for module, lora in loras.items()}
    alphas = {module: float(rank) for module, rank in ranks.items()}
    inject_adapter(network, spec=AdapterSpec("lora", 1, 1, tuple(loras), "kaiming", None, ranks, alphas))
    for module, lora in loras.items():
        delta_parameters.set_delta(network.get_submodule(module), lora)


def _exact_lora(delta: DeltaWeight, base: torch.Tensor | None) -> LoraDelta:
    """Return any delta weight as a LoRA without error; without factors, its matrix times the identity."""
    if isinstance(delta, LoraDelta):
        return delta
    if (lora := low_rank.exact_lora(delta)) is not None:
        return lora
    dense = delta.dense(base)
    matrix = dense.flatten(1)  # (out, in * kernel)
    height, width = matrix.shape
    if height <= width:
        down, up = matrix, torch.eye(height)
    else:
        down, up = torch.eye(width), matrix
    kernel = dense.shape[2:]
    return LoraDelta(down.reshape(-1, *dense.shape[1:]), up.reshape(*up.shape, *[1] * len(kernel)))
