"""Adapters as files: their tensors, and what a file says about itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.adapters.injection import (
    ADAPTER_NAME,
    INIT_ADAPTER,
    NO_ADAPTER,
    inject_adapter,
    peft_layers,
    set_adapter_strength,
    trainable_parameters,
)
from lorakit.adapters.methods import METHODS
from lorakit.adapters.targets import AdapterSpec
from lorakit.adapters.textual_inversion import is_embedding_key
from lorakit.config.recipe import MAX_RANK
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, NumericError

METADATA_KEY = "lorakit"
_PART = re.compile(r"\.(lora_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_R)(\.weight)?$")


def count_trainable(*networks: nn.Module) -> tuple[int, int]:
    """(adapted modules, trained numbers)."""
    parameters = [
        (index, *one) for index, network in enumerate(networks) for one in trainable_parameters(network)
    ]
    modules = {(index, _stem(name)) for index, name, _ in parameters if not is_embedding_key(name)}
    return len(modules), sum(p.numel() for _, _, p in parameters)


def _stem(key: str) -> str:
    return _PART.sub("", key)


def _stored_pieces(denoiser: nn.Module) -> dict[str, tuple[int, list[torch.Tensor]]]:
    """What makes each tensor on disk: the axis, and the pieces to be joined along it."""
    starts = {
        id(getattr(layer, part)[ADAPTER_NAME].weight): (axis, getattr(layer, part)[INIT_ADAPTER].weight)
        for layer in peft_layers(denoiser)
        for axis, part in enumerate(("lora_A", "lora_B"))
        if INIT_ADAPTER in getattr(layer, part, {})
    }
    found: dict[str, tuple[int, list[torch.Tensor]]] = {}
    for name, parameter in trainable_parameters(denoiser):
        axis, start = starts.get(id(parameter), (0, None))
        found[name] = (axis, [parameter] if start is None else [parameter, start])
    return found


def state(denoiser: nn.Module, component: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors by their name on disk, as copies on the CPU."""
    return {
        f"{component}.{name}": torch.cat([piece.detach() for piece in pieces], axis).cpu().clone()
        for name, (axis, pieces) in _stored_pieces(denoiser).items()
    }


def adapter_state_dict(networks: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of several networks' adapters, by component."""
    return {key: t for component, network in networks.items() for key, t in state(network, component).items()}


def load_state(denoiser: nn.Module, component: str, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy tensors into injected layers; names and shapes must match exactly."""
    load_adapter_state_dict({component: denoiser}, tensors, where)


def load_adapter_state_dict(
    networks: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor], where: str
) -> None:
    """Copy tensors into the adapters of several networks; names and shapes must match exactly."""
    own = {
        f"{component}.{name}": stored
        for component, network in networks.items()
        for name, stored in _stored_pieces(network).items()
    }
    wrong = [k for k in sorted(own.keys() | tensors.keys()) if k not in own or k not in tensors]
    wrong += [k for k in own if k in tensors and _joined_size(*own[k]) != tensors[k].shape]
    if wrong:
        raise DataError(
            f"the adapter does not fit this base: {len(wrong)} tensors differ, first {', '.join(wrong[:5])}",
            where=where,
            remedy="use the base it was trained on",
        )
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NumericError("the adapter holds NaN or infinity", where=f"{where}, {key}")
    with torch.no_grad():
        for key, (axis, pieces) in own.items():
            parts = tensors[key].split([piece.shape[axis] for piece in pieces], axis)
            for piece, part in zip(pieces, parts, strict=True):
                piece.copy_(part)


def _joined_size(axis: int, pieces: list[torch.Tensor]) -> torch.Size:
    size = list(pieces[0].shape)
    size[axis] = sum(piece.shape[axis] for piece in pieces)
    return torch.Size(size)


def resolve_adapter_file(given: str | Path) -> Path:
    """The adapter file of a run's folder, or the file itself; a missing one is a `ConfigError`."""
    path = Path(given)
    file = path / "adapter.safetensors" if path.is_dir() else path
    if not file.is_file():
        remedy = "give a finished run's folder or an adapter file"
        raise ConfigError("there is no such adapter", where=str(file), remedy=remedy)
    return file


def pack_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """File metadata from plain values."""
    return {"format": "pt", METADATA_KEY: json.dumps(facts, sort_keys=True, ensure_ascii=False)}


def read_adapter_metadata(path: str | Path) -> dict[str, Any]:
    """The facts lorakit stored beside an adapter; a file of other origin is a `ConfigError`."""
    text = storage.read_safetensors_metadata(path).get(METADATA_KEY)
    if text is None:
        raise ConfigError(
            "this adapter was not written by lorakit: its rank and alpha are not recorded",
            where=str(path),
            remedy="give a run's adapter.safetensors",
        )
    try:
        facts = dict(json.loads(text))
        ranks = [facts["rank"], *dict(facts.get("ranks", {})).values()]
        alphas = [facts["alpha"], *dict(facts.get("alphas", {})).values()]
        sound = all(1 <= rank <= 2 * MAX_RANK for rank in ranks) and all(map(math.isfinite, alphas))
        words = (facts.get(key, "") for key in ("family", "type", "base_hash"))
        if not sound or not all(isinstance(word, str) for word in words):
            raise ValueError("impossible values")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"the adapter's record of itself is damaged: {error}", where=str(path)) from error
    return facts


def load(denoiser: nn.Module, component: str, path: str | Path, strength: float = 1.0) -> dict[str, Any]:
    """Inject the adapter of a file written by lorakit, scaled by `strength`; returns its facts."""
    return load_adapter({component: denoiser}, path, strength)


def load_adapter(
    networks: Mapping[str, nn.Module], path: str | Path, strength: float = 1.0
) -> dict[str, Any]:
    """Inject a file's adapters into the networks that they belong to; returns its facts.

    A network of which the file holds nothing stays as it is; the first one must be in it, unless the file
    holds nothing but a new word, which the networks were taught before.
    """
    facts = read_adapter_metadata(path)
    tensors = storage.read_safetensors(path)
    first = next(iter(networks))
    used = {
        component: network
        for component, network in networks.items()
        if component == first or any(key.startswith(f"{component}.") for key in tensors)
    }
    for component, network in used.items():
        shape = _spec_from_file(facts, tensors, component, str(path))
        if not shape.modules and component != first:  # a new word and no more
            shape = replace(shape, type=NO_ADAPTER)
        inject_adapter(network, shape=shape)
    load_adapter_state_dict(used, tensors, str(path))
    if strength != 1:
        for network in used.values():
            set_adapter_strength(network, strength)
    return facts


def _spec_from_file(
    facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], component: str, where: str
) -> AdapterSpec:
    """The shape of the adapter of one network, from a file's facts and keys."""
    kind = facts.get("type", "lora")
    if kind not in (*METHODS, NO_ADAPTER):
        raise ConfigError(f"adapters of type {kind!r} are not known", where=where, remedy="update lorakit")
    start = f"{component}."

    def own(key: str) -> dict[str, Any]:
        told = facts.get(key, {})
        return {name.removeprefix(start): value for name, value in told.items() if name.startswith(start)}

    own_keys = [key for key in tensors if key.startswith(start) and not is_embedding_key(key)]
    modules = {_stem(key).removeprefix(start) for key in own_keys}
    rank, alpha, factor = facts["rank"], facts["alpha"], facts.get("factor")
    return AdapterSpec(
        kind, rank, alpha, tuple(sorted(modules)), "kaiming", factor, own("ranks"), own("alphas")
    )
