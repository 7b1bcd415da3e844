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
from lorakit.adapters.targets import AdapterSpec, find_target_modules, no_target_error
from lorakit.core.errors import ConfigError

ADAPTER_NAME = "default"
NO_ADAPTER = "none"
"""Type of an adapter without modules: only a new word is trained."""
INIT_ADAPTER = "start"
"""Second adapter of the layers that begin as a part of the base: that part, negative and frozen."""
_OWN = re.compile(
    rf"\.(lora_A|lora_B|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_R)\.{ADAPTER_NAME}(\.weight)?$|\.learned$"
)


def inject_adapter(
    denoiser: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 16,
    targets: str | list[str] = (),  # type: ignore[assignment]
    seed: int = 0,
    shape: AdapterSpec | None = None,
) -> None:
    """Put an adapter into `denoiser` in place: `shape`, or a LoRA of `rank` and `alpha` for `targets`.

    It changes nothing yet, and only it requires gradients afterwards. LoRA's A is uniform (Kaiming, a = sqrt
    5) by a keyed generator, B zero. No matching module is a `ConfigError`.
    """
    from peft import inject_adapter_in_model

    shape = shape or AdapterSpec("lora", rank, alpha, tuple(find_target_modules(denoiser, targets)))
    _check(denoiser, shape, targets)
    denoiser.requires_grad_(False)
    if shape.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are replaced at once
            inject_adapter_in_model(methods.peft_config(shape), denoiser, adapter_name=ADAPTER_NAME)
    for word in textual_inversion.learned_embeddings(denoiser):
        word.learned.requires_grad_(True)
    for name, parameter in trainable_parameters(denoiser):
        methods.init_parameter(name, parameter, seed, shape.init)
    for layer in peft_layers(denoiser):
        if ADAPTER_NAME in getattr(layer, "lora_magnitude_vector", {}):
            _init_dora_magnitude(layer)
        if shape.started:
            _init_from_weight(layer, shape)


def _check(network: nn.Module, shape: AdapterSpec, targets: Any) -> None:
    known = {name for name, _ in network.named_modules()}
    strange = [name for name in shape.modules if name not in known]
    if strange or not (shape.modules or shape.type == NO_ADAPTER):
        raise no_target_error(targets or strange[:3] or "none")
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


def _init_dora_magnitude(layer: Any) -> None:
    """DoRA's magnitudes are the norms of the base's weights."""
    magnitude = layer.lora_magnitude_vector[ADAPTER_NAME]
    magnitude.update_layer(
        base_layer=layer.get_base_layer(),
        lora_A=layer.lora_A[ADAPTER_NAME].weight,
        lora_B=layer.lora_B[ADAPTER_NAME].weight,
        scaling=layer.scaling[ADAPTER_NAME],
    )
    magnitude.weight = nn.Parameter(magnitude.weight.detach().float())


def _init_from_weight(layer: Any, shape: AdapterSpec) -> None:
    """Both adapters of a layer that begins as a part of the base, which stays as it is.

    The usual way takes that part off the base's weights, where half precision would round it.
    """
    from peft.utils.integrations import dequantize_module_weight

    own = layer.lora_A[ADAPTER_NAME].weight
    rank, scale = len(own), layer.scaling[ADAPTER_NAME]
    layer.update_layer(INIT_ADAPTER, rank, layer.lora_alpha[ADAPTER_NAME], config=methods.peft_config(shape))
    down, up = methods.principal_factors(
        dequantize_module_weight(layer.get_base_layer()), rank, scale, shape.init
    )
    if len(down) < rank:
        raise ConfigError(
            f"a weight of {tuple(layer.get_base_layer().weight.shape)} has no {rank} directions to begin in",
            where="adapter.rank",
            remedy=f"use at most {len(down)} with init {shape.init}",
        )
    for name, sign in ((ADAPTER_NAME, 1.0), (INIT_ADAPTER, -1.0)):
        layer.lora_A[name].weight.data = down.clone().to(own.device)
        layer.lora_B[name].weight.data = (sign * up).to(own.device)
    layer.set_adapter([ADAPTER_NAME, INIT_ADAPTER])
    freeze_init_adapter(layer)


def freeze_init_adapter(layer: Any) -> None:
    """The part of the base that was taken is never trained; peft wakes all that is active."""
    for part in ("lora_A", "lora_B"):
        if INIT_ADAPTER in getattr(layer, part, {}):
            getattr(layer, part)[INIT_ADAPTER].requires_grad_(False)


def trainable_parameters(denoiser: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trained parameters by their name on disk (without the component), sorted."""
    return sorted(
        (_on_disk(name), parameter) for name, parameter in denoiser.named_parameters() if _OWN.search(name)
    )


def _on_disk(name: str) -> str:
    return name if textual_inversion.is_embedding_key(name) else _OWN.sub(r".\1\2", name)


def all_trainable_parameters(networks: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """The trained parameters of several networks; the names of all but the first one's begin with the
    component's."""
    first = next(iter(networks))
    return [
        (name if component == first else f"{component}.{name}", parameter)
        for component, network in networks.items()
        for name, parameter in trainable_parameters(network)
    ]


def peft_layers(denoiser: nn.Module) -> Iterator[Any]:
    """peft's layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in list(denoiser.modules()) if isinstance(module, BaseTunerLayer))


def set_adapter_strength(denoiser: nn.Module, strength: float) -> None:
    """Scale the change of each weight by the adapter that is loaded: 1 as it was trained, 0 none."""
    for word in textual_inversion.learned_embeddings(denoiser):
        word.strength = strength
    for layer in peft_layers(denoiser):
        if ADAPTER_NAME in getattr(layer, "oft_R", {}) or ADAPTER_NAME in getattr(
            layer, "lora_magnitude_vector", {}
        ):
            _set_output_blend(layer, strength)  # these do not add to the weight
            continue
        for name in layer.active_adapters:
            layer.set_scale(name, strength)


def _set_output_blend(layer: nn.Module, strength: float) -> None:
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
def adapters_disabled(*networks: nn.Module) -> Iterator[None]:
    """The base model without its adapter, for a while; a new word means what it was begun as."""
    every = [layer for network in networks for layer in peft_layers(network)]
    taught = {word: word.strength for word in textual_inversion.learned_embeddings(*networks)}
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
            freeze_init_adapter(layer)
