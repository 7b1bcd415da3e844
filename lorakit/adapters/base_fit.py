"""Compare an adapter with a base model other than the one it was trained on: family, modules, shapes.

An adapter is often used on a fine-tune of its base model, so that another hash is a note and no error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.adapters.formats import detect_family
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.experts import HIGH_NOISE, LOW_NOISE
from lorakit.adapters.formats.module_names import with_text_model_prefix
from lorakit.adapters.formats.native_names import NATIVE_NAMES
from lorakit.adapters.formats.read import LoadedAdapter, read_adapter_file
from lorakit.adapters.target_patterns import ADAPTABLE_LAYERS
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model
from lorakit.models.families.family import Family

_LOW_NOISE_NAME = re.compile(r"low[-_ ]?noise|(?<![a-z])low(?![a-z])")
_MAX_KEYS = 5
_PREDICTION_TYPES = {"v": "v_prediction", "epsilon": "epsilon"}  # as ModelSpec names them


def read_for_base(source: Path, family: Family, networks: Mapping[str, nn.Module]) -> LoadedAdapter:
    """Read an adapter of any origin for a base model of `family`; `networks` may be on the meta device.

    Raises ConfigError if the adapter is of another family, or if its modules or shapes do not fit, and what
    `read_adapter_file` raises.
    """
    adapter = read_adapter_file(source, allow_embedding_only=True)
    names = named_families(adapter)
    if not names and len(adapter.possible_families) != 1:  # native names depend on the family
        hints = [name for name in adapter.possible_families if _is_related(name, family.name)]
        if hints or not adapter.possible_families:
            own = family.name if not hints or {family.name} & {*hints, *NATIVE_NAMES} else hints[0]
            adapter = read_adapter_file(source, own, allow_embedding_only=True)
    candidates = names or list(adapter.possible_families)
    is_same_family = not candidates or any(_is_related(name, family.name) for name in candidates)
    require_related(adapter, family, source)
    adapter = assign_expert(adapter, networks)
    try:
        require_fit(adapter.deltas, networks, str(source))
    except ConfigError:
        if is_same_family:
            raise
        raise _family_error(candidates, family, source) from None
    return adapter


def named_families(adapter: LoadedAdapter) -> list[str]:
    """Return the family that the metadata of a file names, if any."""
    named = (adapter.lorakit_metadata.get("family"), *detect_family.family_from_metadata(adapter.metadata))
    return [name for name in named if name]


def require_related(adapter: LoadedAdapter, family: Family, source: Path) -> None:
    """Raise ConfigError if the metadata of an adapter names another family than that of a base model."""
    names = named_families(adapter)
    if names and not any(_is_related(name, family.name) for name in names):
        raise _family_error(names, family, source)


def _is_related(name: str, other: str) -> bool:
    """Return True for one family, and for families of one network: `flux1` and `flux1-kontext`."""
    return name == other or name.startswith(f"{other}-") or other.startswith(f"{name}-")


def _family_error(candidates: Iterable[str], family: Family, source: Path) -> ConfigError:
    names = " or ".join(candidates)
    return ConfigError(
        f"the adapter has family {names}, this base model {family.name} ({family.title})",
        where=str(source),
        remedy=f"use a base model of the family {names}, or an adapter of {family.name}",
    )


def assign_expert(adapter: LoadedAdapter, components: Collection[str]) -> LoadedAdapter:
    """Return an adapter of the low-noise expert with the component's name, which other programs leave out.

    The expert is the one that the metadata of lorakit's exports names, or the name of the file.
    """
    if LOW_NOISE not in components or adapter.component_deltas(LOW_NOISE):
        return adapter
    name = adapter.path.stem.lower() if adapter.path else ""
    expert = adapter.lorakit_metadata.get("expert")
    is_low = expert == "low-noise" or (
        expert is None and bool(_LOW_NOISE_NAME.search(name)) and "high" not in name
    )
    if not is_low:
        return adapter
    prefix = f"{HIGH_NOISE}."
    deltas = {
        f"{LOW_NOISE}.{module.removeprefix(prefix)}" if module.startswith(prefix) else module: delta
        for module, delta in adapter.deltas.items()
    }
    return replace(adapter, deltas=deltas)


def full_module_names(networks: Mapping[str, nn.Module]) -> dict[str, tuple[str, str]]:
    """Return (component, module) of each layer that can have an adapter, by its name in files."""
    return {
        file_name(component, name): (component, name)
        for component, network in networks.items()
        for name, module in network.named_modules()
        if isinstance(module, ADAPTABLE_LAYERS)
    }


def file_name(component: str, module: str) -> str:
    """Return `<component>.<module>` as files name it: transformers leaves out `text_model.` today."""
    return f"{component}.{with_text_model_prefix(module)}"


def require_fit(deltas: Mapping[str, DeltaWeight], networks: Mapping[str, nn.Module], where: str) -> None:
    """Raise ConfigError with the first five modules that the networks do not have with the same shape."""
    layers = full_module_names(networks)
    wrong = []
    for module, delta in deltas.items():
        if module not in layers:
            wrong.append(f"{module} (not in the base model)")
            continue
        component, name = layers[module]
        shape = _weight_shape(networks[component].get_submodule(name))
        if not shapes_match(delta.shape, shape):
            wrong.append(f"{module} (shape {_text(delta.shape)}, in the base model {_text(shape)})")
    if wrong:
        more = ", ..." if len(wrong) > _MAX_KEYS else ""
        raise ConfigError(
            f"the adapter does not fit this base model: {len(wrong)} of {len(deltas)} modules differ, first "
            + ", ".join(wrong[:_MAX_KEYS])
            + more,
            where=where,
            remedy="use the base model that it was trained on, or a fine-tune of that model",
        )


def shapes_match(delta: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Compare the outputs and the number of elements: some methods flatten convolutions, OFT has one axis."""
    if 0 in delta:
        return all(
            delta_size in (0, weight_size) for delta_size, weight_size in zip(delta, weight, strict=False)
        )
    return delta[0] == weight[0] and math.prod(delta) == math.prod(weight)


def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight, also if it is quantized."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    weight: Any = layer.weight
    return tuple(weight.shape)


def _text(shape: Iterable[int]) -> str:
    return " x ".join(str(size) if size else "any" for size in shape)


def base_notes(
    adapter_metadata: Mapping[str, Any], file_metadata: Mapping[str, str], base: Path
) -> list[str]:
    """Return what differs between a base model and the one that an adapter was trained on, for people.

    `adapter_metadata` is the part that lorakit wrote. The base model's hash is computed only if it is known.
    """
    notes = []
    trained_on = adapter_metadata.get("base_hash")
    if trained_on and trained_on != base_model.base_hash(base):
        notes.append(
            "the adapter was trained on another base model of this family: results may differ from those of"
            " its training"
        )
    prediction = adapter_metadata.get("prediction_type") or _PREDICTION_TYPES.get(
        file_metadata.get("modelspec.prediction_type", "").lower()
    )
    if prediction is None and trained_on:
        prediction = "epsilon"  # lorakit records only the other ones
    current = prediction_type(base)
    if current and prediction and prediction != current:
        notes.append(
            f"warning: the adapter was trained on a base model that predicts {prediction}, this one predicts"
            f" {current}: the images will probably be wrong"
        )
    return notes


def prediction_type(base: Path) -> str | None:
    """Return the prediction type in a base model's scheduler; None for flow models, which have one only."""
    file = base / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    config = storage.read_json(file)
    prediction = str(config.get("prediction_type", "epsilon"))
    return prediction if "beta_start" in config and prediction != "flow_prediction" else None


def prediction_metadata(base: Path) -> dict[str, str]:
    """Return the metadata about what an adapter's base model predicts; empty for noise, the usual one."""
    prediction = prediction_type(base)
    return {} if prediction in (None, "epsilon") else {"prediction_type": str(prediction)}
