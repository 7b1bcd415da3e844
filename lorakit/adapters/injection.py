"""Adapters in a network, through peft: inject, find, scale and disable them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorakit.adapters import methods, textual_inversion
from lorakit.adapters.target_patterns import AdaptedNetwork, layer_names, match_entries
from lorakit.adapters.targets import AdapterSpec, find_target_modules, no_target_error
from lorakit.core.errors import ConfigError
from lorakit.models.families.family import ATTENTION_TARGETS

ADAPTER_NAME = "default"
NO_ADAPTER = "none"
"""Method of an adapter without modules: only the vectors of a new token are trained."""
INIT_ADAPTER = "start"
"""Second adapter of layers that start from the base model's weight: that part, negative and frozen."""
_COMPUTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRAINABLE = re.compile(
    rf"\.(lora_A|lora_B|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_R)\.{ADAPTER_NAME}(\.weight)?$|\.learned$"
)


def inject_adapter(
    network: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 16,
    targets: str | list[str] = (),  # type: ignore[assignment]
    seed: int = 0,
    spec: AdapterSpec | None = None,
) -> None:
    """Inject an adapter into `network` in place: `spec`, or a LoRA of `rank` and `alpha` for `targets`.

    A new adapter does not change the output, and afterwards only its parameters require gradients. The
    initial values come from a keyed generator: for LoRA, A is uniform (Kaiming, a = sqrt 5) and B zero.
    Raises ConfigError if an entry of `targets` matches no module (but the attention layers of all families,
    as `Family.target_modules` lists them), or if the method does not fit a module.
    """
    from peft import inject_adapter_in_model

    spec = spec or AdapterSpec("lora", rank, alpha, tuple(_all_targets(network, targets)))
    _check_target_modules(network, spec, targets)
    network.requires_grad_(False)
    if spec.target_modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about initial values, which are replaced below
            inject_adapter_in_model(methods.peft_config(spec), network, adapter_name=ADAPTER_NAME)
    for embedding in textual_inversion.learned_embeddings(network):
        embedding.learned.requires_grad_(True)
    for name, parameter in trainable_parameters(network):
        methods.init_parameter(name, parameter, seed, spec.init)
    for layer in peft_layers(network):
        if ADAPTER_NAME in getattr(layer, "lora_magnitude_vector", {}):
            _init_dora_magnitude(layer)
        if spec.starts_from_weight:
            _init_from_weight(layer, spec)


def _all_targets(network: nn.Module, targets: str | list[str]) -> list[str]:
    if isinstance(targets, str) or set(ATTENTION_TARGETS) <= set(targets):
        return find_target_modules(network, targets)
    layers = layer_names(network)
    matches = match_entries(targets, layers, AdaptedNetwork(network), "adapter.targets")
    matched = {name for match in matches for name in match.modules}
    return [name for name in layers if name in matched]


def _check_target_modules(network: nn.Module, spec: AdapterSpec, targets: Any) -> None:
    names = {name for name, _ in network.named_modules()}
    missing = [name for name in spec.target_modules if name not in names]
    if missing or not (spec.target_modules or spec.method == NO_ADAPTER):
        raise no_target_error(targets or missing[:3] or "none")
    if spec.method != "oft":
        return
    for name in spec.target_modules:
        layer = network.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"{name} is a convolution, which OFT cannot adapt",
                where="adapter.targets",
                remedy="leave convolutions out, or use another adapter type",
            )
        if layer.in_features % spec.rank:
            raise ConfigError(
                f"blocks of {spec.rank} do not divide the {layer.in_features} inputs of {name}",
                where="adapter.rank",
                remedy="use a rank that divides them: with OFT the rank is the side of a block",
            )


def _init_dora_magnitude(layer: Any) -> None:
    """Set DoRA's magnitudes to the norms of the base model's weight."""
    magnitude = layer.lora_magnitude_vector[ADAPTER_NAME]
    magnitude.update_layer(
        base_layer=layer.get_base_layer(),
        lora_A=layer.lora_A[ADAPTER_NAME].weight,
        lora_B=layer.lora_B[ADAPTER_NAME].weight,
        scaling=layer.scaling[ADAPTER_NAME],
    )
    magnitude.weight = nn.Parameter(magnitude.weight.detach().float())


def _init_from_weight(layer: Any, spec: AdapterSpec) -> None:
    """Set both adapters of a layer that starts from the base model's weight, which is not changed.

    peft subtracts the part from the weight instead, where half precision would round it.
    """
    from peft.utils.integrations import dequantize_module_weight

    lora_a = layer.lora_A[ADAPTER_NAME].weight
    rank, scale = len(lora_a), layer.scaling[ADAPTER_NAME]
    layer.update_layer(INIT_ADAPTER, rank, layer.lora_alpha[ADAPTER_NAME], config=methods.peft_config(spec))
    factors = methods.principal_factors(
        dequantize_module_weight(layer.get_base_layer()), rank, scale, spec.init
    )
    if len(factors.down) < rank:
        raise ConfigError(
            f"rank {rank} is larger than a weight of {tuple(layer.get_base_layer().weight.shape)} allows",
            where="adapter.rank",
            remedy=f"use at most {len(factors.down)} with init {spec.init}",
        )
    for name, sign in ((ADAPTER_NAME, 1.0), (INIT_ADAPTER, -1.0)):
        layer.lora_A[name].weight.data = factors.down.clone().to(lora_a.device)
        layer.lora_B[name].weight.data = (sign * factors.up).to(lora_a.device)
    layer.set_adapter([ADAPTER_NAME, INIT_ADAPTER])
    freeze_init_adapter(layer)


def freeze_init_adapter(layer: Any) -> None:
    """Freeze the initial part, which is never trained; peft lets all active adapters require gradients."""
    for part in ("lora_A", "lora_B"):
        if INIT_ADAPTER in getattr(layer, part, {}):
            getattr(layer, part)[INIT_ADAPTER].requires_grad_(False)


def trainable_parameters(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters, sorted by their name in a file (without the component)."""
    return sorted(
        (_name_in_file(name), parameter)
        for name, parameter in network.named_parameters()
        if _TRAINABLE.search(name)
    )


def _name_in_file(name: str) -> str:
    return name if textual_inversion.is_embedding_key(name) else _TRAINABLE.sub(r".\1\2", name)


def all_trainable_parameters(networks: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters of several networks, network by network.

    The names of all but the first network's start with the component.
    """
    first = next(iter(networks))
    return [
        (name if component == first else f"{component}.{name}", parameter)
        for component, network in networks.items()
        for name, parameter in trainable_parameters(network)
    ]


def computed_dtypes(network: nn.Module, compute_dtype: torch.dtype) -> dict[nn.Parameter, torch.dtype]:
    """Return the data type in which each parameter of injected adapters computes: that of the adapted weight.

    It is `compute_dtype` where that weight is quantized, and float32 for the vectors of a new token. Some
    networks keep a few modules in float32 although the others have half precision.
    """
    dtypes: dict[nn.Parameter, torch.dtype] = {}
    for layer in peft_layers(network):
        base_dtype = getattr(getattr(layer.get_base_layer(), "weight", None), "dtype", None)
        dtype = base_dtype if base_dtype in _COMPUTED_DTYPES else compute_dtype
        base_parameters = set(layer.get_base_layer().parameters())
        dtypes |= dict.fromkeys((p for p in layer.parameters() if p not in base_parameters), dtype)
    for embedding in textual_inversion.learned_embeddings(network):
        dtypes[embedding.learned] = torch.float32
    return dtypes


def cast_adapter(network: nn.Module, compute_dtype: torch.dtype, *, only_frozen: bool = False) -> None:
    """Round the parameters of injected adapters to their `computed_dtypes`, in place.

    With `only_frozen`, those that are trained keep theirs.
    """
    for parameter, dtype in computed_dtypes(network, compute_dtype).items():
        if not (only_frozen and parameter.requires_grad):
            parameter.data = parameter.data.to(dtype)


def peft_layers(network: nn.Module) -> Iterator[Any]:
    """Yield the layers that peft has wrapped."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in list(network.modules()) if isinstance(module, BaseTunerLayer))


def set_adapter_strength(network: nn.Module, strength: float) -> None:
    """Scale the delta weight of the injected adapter: 1 as trained, 0 without effect."""
    for embedding in textual_inversion.learned_embeddings(network):
        embedding.strength = strength
    for layer in peft_layers(network):
        if ADAPTER_NAME in getattr(layer, "oft_R", {}) or ADAPTER_NAME in getattr(
            layer, "lora_magnitude_vector", {}
        ):
            _set_output_blend(layer, strength)  # OFT and DoRA do not add to the weight
            continue
        for name in layer.active_adapters:
            layer.set_scale(name, strength)


def _set_output_blend(layer: nn.Module, strength: float) -> None:
    """Mix a layer's output with the base layer's: for a linear layer the same as scaling its delta weight."""
    previous_hook = layer.__dict__.pop("_strength", None)
    if previous_hook is not None:
        previous_hook.remove()
    if strength == 1:
        return

    def blend(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        if module.disable_adapters:
            return output
        base_output: torch.Tensor = module.get_base_layer()(*args, **kwargs)
        return base_output + strength * (output - base_output)

    layer.__dict__["_strength"] = layer.register_forward_hook(blend, with_kwargs=True)


@contextmanager
def adapters_disabled(*networks: nn.Module) -> Iterator[None]:
    """Disable the adapters of `networks` in a `with` block; new tokens have their initial vectors there.

    Blocks may be nested: adapters that are disabled already stay so afterwards.
    """
    layers = [layer for network in networks for layer in peft_layers(network) if not layer.disable_adapters]
    strengths = {
        embedding: embedding.strength for embedding in textual_inversion.learned_embeddings(*networks)
    }
    for layer in layers:
        layer.enable_adapters(False)
    for embedding in strengths:
        embedding.strength = 0.0
    try:
        yield
    finally:
        for embedding, strength in strengths.items():
            embedding.strength = strength
        for layer in layers:
            layer.enable_adapters(True)
            freeze_init_adapter(layer)
