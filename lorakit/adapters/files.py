"""Adapter files of lorakit: the tensors of injected adapters, and the metadata stored with them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from lorakit.core.errors import ConfigError, DataError, NumericError, first_line
from lorakit.core.strict_json import parse_json

METADATA_KEY = "lorakit"
"""Key of the safetensors metadata under which lorakit stores its own, as JSON."""
_PART = re.compile(r"\.(lora_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_R)(\.weight)?$")


@dataclass(frozen=True)
class AdapterSize:
    """The size of injected adapters: adapted modules, and trainable parameters (elements)."""

    num_modules: int
    num_parameters: int


@dataclass(frozen=True)
class _StoredTensor:
    """One tensor of a file: the parameters that are joined along `axis` when it is written."""

    axis: int
    parameters: list[torch.Tensor]

    @property
    def shape(self) -> torch.Size:
        size = list(self.parameters[0].shape)
        size[self.axis] = sum(parameter.shape[self.axis] for parameter in self.parameters)
        return torch.Size(size)

    def joined(self) -> torch.Tensor:
        return torch.cat([parameter.detach() for parameter in self.parameters], self.axis).cpu().clone()

    def copy_(self, tensor: torch.Tensor) -> None:
        pieces = tensor.split([parameter.shape[self.axis] for parameter in self.parameters], self.axis)
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.copy_(piece)


def count_trainable(*networks: nn.Module) -> AdapterSize:
    """Count the adapted modules and the trainable parameters of networks."""
    parameters = [
        (index, *entry) for index, network in enumerate(networks) for entry in trainable_parameters(network)
    ]
    modules = {(index, _module_name(name)) for index, name, _ in parameters if not is_embedding_key(name)}
    return AdapterSize(len(modules), sum(parameter.numel() for _, _, parameter in parameters))


def _module_name(key: str) -> str:
    return _PART.sub("", key)


def _stored_tensors(networks: Mapping[str, nn.Module]) -> dict[str, _StoredTensor]:
    """Return the tensors of a file by key, each with the parameters that it consists of.

    PiSSA and OLoRA: the trained factors, followed by the initial ones that are subtracted.
    """
    return {
        f"{component}.{name}": tensor
        for component, network in networks.items()
        for name, tensor in _stored_tensors_of(network).items()
    }


def _stored_tensors_of(network: nn.Module) -> dict[str, _StoredTensor]:
    initial = {
        id(getattr(layer, part)[ADAPTER_NAME].weight): (axis, getattr(layer, part)[INIT_ADAPTER].weight)
        for layer in peft_layers(network)
        for axis, part in enumerate(("lora_A", "lora_B"))
        if INIT_ADAPTER in getattr(layer, part, {})
    }
    stored: dict[str, _StoredTensor] = {}
    for name, parameter in trainable_parameters(network):
        axis, start = initial.get(id(parameter), (0, None))
        stored[name] = _StoredTensor(axis, [parameter] if start is None else [parameter, start])
    return stored


def adapter_state_dict(networks: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Return the adapters' tensors by key `<component>.<module>.<part>`, as copies on the CPU.

    `networks` maps components, such as `unet`, to networks with an injected adapter.
    """
    return {key: tensor.joined() for key, tensor in _stored_tensors(networks).items()}


def load_adapter_state_dict(
    networks: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor], where: str
) -> None:
    """Copy tensors into injected adapters; `where` names their file in errors.

    Raises DataError if keys or shapes do not match exactly, NumericError for NaN or infinity.
    """
    stored = _stored_tensors(networks)
    wrong = sorted(stored.keys() ^ tensors.keys())
    wrong += [key for key in stored if key in tensors and stored[key].shape != tensors[key].shape]
    if wrong:
        raise DataError(
            f"the adapter does not fit this base model: {len(wrong)} tensors differ, "
            f"first {', '.join(wrong[:5])}",
            where=where,
            remedy="use the base model that it was trained on",
        )
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NumericError("the adapter contains NaN or infinity", where=f"{where}, {key}")
    with torch.no_grad():
        for key, target in stored.items():
            target.copy_(tensors[key])


def pack_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the safetensors metadata that stores lorakit's own, which is plain JSON values."""
    return {"format": "pt", METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)}


def read_adapter_metadata(path: str | Path) -> dict[str, Any]:
    """Read lorakit's metadata of an adapter file.

    Raises ConfigError for a file that lorakit did not write, DataError for damaged metadata.
    """
    text = storage.read_safetensors_metadata(path).get(METADATA_KEY)
    if text is None:
        raise ConfigError(
            "lorakit did not write this adapter, so its rank and alpha are unknown",
            where=str(path),
            remedy="give the adapter.safetensors of a run",
        )
    return parse_adapter_metadata(text, str(path))


def parse_adapter_metadata(text: str, where: str) -> dict[str, Any]:
    """Parse lorakit's metadata; DataError if it is damaged or holds impossible values."""
    try:
        metadata = dict(parse_json(text, where))
        ranks = [metadata["rank"], *dict(metadata.get("rank_pattern", {})).values()]
        alphas = [metadata["alpha"], *dict(metadata.get("alpha_pattern", {})).values()]
        plausible = all(1 <= rank <= 2 * MAX_RANK for rank in ranks) and all(map(math.isfinite, alphas))
        names = [metadata.get(key, "") for key in ("family", "type", "base_hash")]
        sections = [metadata.get(key, {}) for key in ("rank_pattern", "alpha_pattern")]
        if (inversion := metadata.get("textual_inversion")) is not None:
            names.append(inversion["token"])
        plausible = plausible and all(isinstance(section, dict) for section in sections)
        if not plausible or not all(isinstance(name, str) for name in names):
            raise ValueError("impossible values")
    except (DataError, ValueError, KeyError, TypeError, OverflowError) as error:
        message = f"the metadata of the adapter is damaged: {first_line(error)}"
        raise DataError(message, where=where) from error
    return metadata


def fits_directly(networks: Mapping[str, nn.Module], path: str | Path) -> bool:
    """Return True if a file has lorakit's metadata, and each of its keys names a module of the networks and a
    parameter of peft: `load_adapter` can load it without conversion."""
    if METADATA_KEY not in storage.read_safetensors_metadata(path):
        return False
    modules = {f"{c}.{name}" for c, network in networks.items() for name, _ in network.named_modules()}
    return all(
        is_embedding_key(key) or (_PART.search(key) is not None and _module_name(key) in modules)
        for key in storage.read_safetensors(path)
    )


def load_adapter(
    networks: Mapping[str, nn.Module], path: str | Path, strength: float = 1.0
) -> dict[str, Any]:
    """Inject the adapters of a file that lorakit wrote, scaled by `strength`; return its metadata.

    `networks` maps components to networks. A network without tensors in the file gets no adapter: the file
    may be of text encoders alone, or hold only the vectors of a new token, which must have been added before.
    Raises what `read_adapter_metadata` and `load_adapter_state_dict` raise, and DataError for an empty file.
    """
    metadata = read_adapter_metadata(path)
    tensors = storage.read_safetensors(path)
    if not tensors:
        raise DataError("the adapter contains no tensors", where=str(path), remedy="use another file")
    first = next(iter(networks))
    adapted = {
        component: network
        for component, network in networks.items()
        if component == first or any(key.startswith(f"{component}.") for key in tensors)
    }
    for component, network in adapted.items():
        spec = _spec_from_file(metadata, tensors, component, str(path))
        if not spec.target_modules:  # only the vectors of a new token, or nothing
            spec = replace(spec, method=NO_ADAPTER)
        inject_adapter(network, spec=spec)
    load_adapter_state_dict(adapted, tensors, str(path))
    if strength != 1:
        for network in adapted.values():
            set_adapter_strength(network, strength)
    return metadata


def _spec_from_file(
    metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], component: str, where: str
) -> AdapterSpec:
    """Return the spec of one network's adapter from a file's metadata and keys."""
    method = metadata.get("type", "lora")
    if method not in (*METHODS, NO_ADAPTER):
        raise ConfigError(f"unknown adapter type {method!r}", where=where, remedy="update lorakit")
    prefix = f"{component}."

    def pattern(key: str) -> dict[str, Any]:
        values = metadata.get(key, {})
        return {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}

    modules = {
        _module_name(key).removeprefix(prefix)
        for key in tensors
        if key.startswith(prefix) and not is_embedding_key(key)
    }
    return AdapterSpec(
        method,
        metadata["rank"],
        metadata["alpha"],
        tuple(sorted(modules)),
        "kaiming",
        metadata.get("factor"),
        pattern("rank_pattern"),
        pattern("alpha_pattern"),
    )
