"""Low-rank adapters in a denoiser, through peft: inject, count, save, load.

On disk: `<component>.<module path>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank) in float32,
and one JSON value `lorakit` in the metadata. The change of a weight is (alpha / rank) * B @ A. LoRA:
arXiv:2106.09685.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit import keyed, storage
from lorakit.errors import ConfigError, DataError, NumericError
from lorakit.recipe import MAX_RANK

NAME = "default"
METADATA_KEY = "lorakit"


def inject(denoiser: nn.Module, *, rank: int, alpha: float, targets: str | list[str], seed: int = 0) -> None:
    """Put LoRA layers into `denoiser` in place; A is uniform (Kaiming, a = sqrt 5) by a keyed generator, B
    zero.

    Only the adapter requires gradients afterwards. No matching module is a `ConfigError`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    denoiser.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
    try:
        inject_adapter_in_model(config, denoiser, adapter_name=NAME)
    except ValueError as error:
        raise ConfigError(
            f"no module of the base matches the adapter's targets {targets!r}",
            where="adapter.targets",
            remedy="use `attention`, or endings of module names such as to_q",
        ) from error
    for name, parameter in named_parameters(denoiser):
        _initialise(name, parameter, seed)


def _initialise(name: str, parameter: nn.Parameter, seed: int) -> None:
    values = torch.zeros(parameter.shape)
    if name.endswith("lora_A.weight"):
        bound = parameter[0].numel() ** -0.5
        values.uniform_(-bound, bound, generator=keyed.generator(seed, "init", name))
    parameter.data = values.to(parameter.device)


def named_parameters(denoiser: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The adapter's parameters by their name on disk (without the component), sorted."""
    return sorted(
        (name.replace(f".{NAME}.", "."), parameter)
        for name, parameter in denoiser.named_parameters()
        if f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name
    )


def count(denoiser: nn.Module) -> tuple[int, int]:
    """(adapted modules, trained numbers)."""
    parameters = named_parameters(denoiser)
    return len(parameters) // 2, sum(parameter.numel() for _, parameter in parameters)


def on_disk(component: str, name: str) -> str:
    """A parameter's whole name; a network of several experts names its components itself."""
    return name if re.match(rf"{component}(_\d)?\.", name) else f"{component}.{name}"


def state(denoiser: nn.Module, component: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors by their name on disk, as copies on the CPU."""
    return {on_disk(component, n): p.detach().cpu().clone() for n, p in named_parameters(denoiser)}


def load_state(denoiser: nn.Module, component: str, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy tensors into injected layers; names and shapes must match exactly."""
    own = {on_disk(component, name): parameter for name, parameter in named_parameters(denoiser)}
    wrong = [k for k in sorted(own.keys() | tensors.keys()) if k not in own or k not in tensors]
    wrong += [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
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
        for key, parameter in own.items():
            parameter.copy_(tensors[key])


def file_of(given: str | Path) -> Path:
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


def read_metadata(path: str | Path) -> dict[str, Any]:
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
        sound = 1 <= facts["rank"] <= MAX_RANK and math.isfinite(facts["alpha"])
        words = (facts.get(key, "") for key in ("family", "type", "base_hash"))
        if not sound or not all(isinstance(word, str) for word in words):
            raise ValueError("impossible values")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"the adapter's record of itself is damaged: {error}", where=str(path)) from error
    return facts


def load(denoiser: nn.Module, component: str, path: str | Path, strength: float = 1.0) -> dict[str, Any]:
    """Inject the adapter of a file written by lorakit, scaled by `strength`; returns its facts."""
    facts = read_metadata(path)
    tensors = storage.read_safetensors(path)
    modules = {re.sub(rf"^{component}(_\d)?\.", "", key).rsplit(".lora_", 1)[0] for key in tensors}
    inject(denoiser, rank=facts["rank"], alpha=facts["alpha"] * strength, targets=sorted(modules))
    load_state(denoiser, component, tensors, str(path))
    return facts


def _layers(denoiser: nn.Module) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in denoiser.modules() if isinstance(module, BaseTunerLayer))


def set_strength(denoiser: nn.Module, strength: float) -> None:
    """Scale the effect of the adapter that is loaded: 1 as it was trained, 0 none."""
    for layer in _layers(denoiser):
        layer.set_scale(NAME, strength)


@contextmanager
def switched_off(denoiser: nn.Module) -> Iterator[None]:
    """The base model without its adapter, for a while."""
    for layer in _layers(denoiser):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in _layers(denoiser):
            layer.enable_adapters(True)
