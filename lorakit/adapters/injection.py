"""The adapter inside a network: put in, found again, made weaker, switched off."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorakit.adapters import methods, textual_inversion
from lorakit.adapters.targets import Shape, found, no_match
from lorakit.core.errors import ConfigError

NAME = "default"
NONE = "none"
"""Type of an adapter without modules: only a new word is trained."""
START = "start"
"""Second adapter of the layers that begin as a part of the base: that part, negative and frozen."""
_OWN = re.compile(
    rf"\.(lora_A|lora_B|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_R)\.{NAME}(\.weight)?$|\.learned$"
)


def inject(
    denoiser: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 16,
    targets: str | list[str] = (),  # type: ignore[assignment]
    seed: int = 0,
    shape: Shape | None = None,
) -> None:
    """Put an adapter into `denoiser` in place: `shape`, or a LoRA of `rank` and `alpha` for `targets`.

    It changes nothing yet, and only it requires gradients afterwards. LoRA's A is uniform (Kaiming, a = sqrt
    5) by a keyed generator, B zero. No matching module is a `ConfigError`.
    """
    from peft import inject_adapter_in_model

    shape = shape or Shape("lora", rank, alpha, tuple(found(denoiser, targets)))
    _check(denoiser, shape, targets)
    denoiser.requires_grad_(False)
    if shape.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are replaced at once
            inject_adapter_in_model(methods.config(shape), denoiser, adapter_name=NAME)
    for word in textual_inversion.of(denoiser):
        word.learned.requires_grad_(True)
    for name, parameter in named_parameters(denoiser):
        methods.begin(name, parameter, seed, shape.init)
    for layer in layers(denoiser):
        if NAME in getattr(layer, "lora_magnitude_vector", {}):
            _begin_magnitude(layer)
        if shape.started:
            _begin_in_base(layer, shape)


def _check(network: nn.Module, shape: Shape, targets: Any) -> None:
    known = {name for name, _ in network.named_modules()}
    strange = [name for name in shape.modules if name not in known]
    if strange or not (shape.modules or shape.type == NONE):
        raise no_match(targets or strange[:3] or "none")
    if shape.type != "oft":
        return
    for name in shape.modules:
        layer = network.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"{name} is a convolution, which oft does not turn",
                where="adapter.targets",
                remedy="leave convolutions out, or use another type",
            )
        if layer.in_features % shape.rank:
            raise ConfigError(
                f"blocks of {shape.rank} do not divide the {layer.in_features} inputs of {name}",
                where="adapter.rank",
                remedy="use a rank that divides them: of oft it is the side of a block",
            )


def _begin_magnitude(layer: Any) -> None:
    """DoRA's magnitudes are the norms of the base's weights."""
    magnitude = layer.lora_magnitude_vector[NAME]
    magnitude.update_layer(
        base_layer=layer.get_base_layer(),
        lora_A=layer.lora_A[NAME].weight,
        lora_B=layer.lora_B[NAME].weight,
        scaling=layer.scaling[NAME],
    )
    magnitude.weight = nn.Parameter(magnitude.weight.detach().float())


def _begin_in_base(layer: Any, shape: Shape) -> None:
    """Both adapters of a layer that begins as a part of the base, which stays as it is.

    The usual way takes that part off the base's weights, where half precision would round it.
    """
    from peft.utils.integrations import dequantize_module_weight

    own = layer.lora_A[NAME].weight
    rank, scale = len(own), layer.scaling[NAME]
    layer.update_layer(START, rank, layer.lora_alpha[NAME], config=methods.config(shape))
    down, up = methods.principal(dequantize_module_weight(layer.get_base_layer()), rank, scale, shape.init)
    if len(down) < rank:
        raise ConfigError(
            f"a weight of {tuple(layer.get_base_layer().weight.shape)} has no {rank} directions to begin in",
            where="adapter.rank",
            remedy=f"use at most {len(down)} with init {shape.init}",
        )
    for name, sign in ((NAME, 1.0), (START, -1.0)):
        layer.lora_A[name].weight.data = down.clone().to(own.device)
        layer.lora_B[name].weight.data = (sign * up).to(own.device)
    layer.set_adapter([NAME, START])
    freeze_start(layer)


def freeze_start(layer: Any) -> None:
    """The part of the base that was taken is never trained; peft wakes all that is active."""
    for part in ("lora_A", "lora_B"):
        if START in getattr(layer, part, {}):
            getattr(layer, part)[START].requires_grad_(False)


def named_parameters(denoiser: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trained parameters by their name on disk (without the component), sorted."""
    return sorted(
        (_on_disk(name), parameter) for name, parameter in denoiser.named_parameters() if _OWN.search(name)
    )


def _on_disk(name: str) -> str:
    return name if textual_inversion.is_learned(name) else _OWN.sub(r".\1\2", name)


def parameters_of(networks: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """The trained parameters of several networks; the names of all but the first one's begin with the
    component's."""
    first = next(iter(networks))
    return [
        (name if component == first else f"{component}.{name}", parameter)
        for component, network in networks.items()
        for name, parameter in named_parameters(network)
    ]


def layers(denoiser: nn.Module) -> Iterator[Any]:
    """peft's layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in list(denoiser.modules()) if isinstance(module, BaseTunerLayer))


def set_strength(denoiser: nn.Module, strength: float) -> None:
    """Scale the change of each weight by the adapter that is loaded: 1 as it was trained, 0 none."""
    for word in textual_inversion.of(denoiser):
        word.strength = strength
    for layer in layers(denoiser):
        if NAME in getattr(layer, "oft_R", {}) or NAME in getattr(layer, "lora_magnitude_vector", {}):
            _blend(layer, strength)  # these do not add to the weight
            continue
        for name in layer.active_adapters:
            layer.set_scale(name, strength)


def _blend(layer: nn.Module, strength: float) -> None:
    """Mix a layer's output with the base's; of a linear layer that is the scaled change of its weight."""
    before = layer.__dict__.pop("_strength", None)
    if before is not None:
        before.remove()
    if strength == 1:
        return

    def blend(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        if module.disable_adapters:
            return output
        plain: torch.Tensor = module.get_base_layer()(*args, **kwargs)
        return plain + strength * (output - plain)

    layer.__dict__["_strength"] = layer.register_forward_hook(blend, with_kwargs=True)


@contextmanager
def switched_off(*networks: nn.Module) -> Iterator[None]:
    """The base model without its adapter, for a while; a new word means what it was begun as."""
    every = [layer for network in networks for layer in layers(network)]
    taught = {word: word.strength for word in textual_inversion.of(*networks)}
    for layer in every:
        layer.enable_adapters(False)
    for word in taught:
        word.strength = 0.0
    try:
        yield
    finally:
        for word, strength in taught.items():
            word.strength = strength
        for layer in every:
            layer.enable_adapters(True)
            freeze_start(layer)
