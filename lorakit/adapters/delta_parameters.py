"""Delta weights as the parameters of an injected adapter, which then makes the same change.

Scale, rank and method of the file and of the layer may differ as long as the delta weight stays the same: the
scale is multiplied into a factor, additional rows start fresh beside zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lorakit.adapters.formats.delta_weights import (
    DeltaWeight,
    DoraDelta,
    FullDelta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    OftDelta,
)
from lorakit.adapters.injection import ADAPTER_NAME

Values = dict[str, torch.Tensor]
"""New values of a layer's parameters, by their name in the layer: `lora_A`, `hada_w1_a`, ..."""


@dataclass(frozen=True)
class Misfit:
    """The reason why a layer cannot make the change of a delta weight, and the value it would need."""

    kind: Literal["method", "rank", "factor"]
    needed: int | str = 0
    """The rank, or the adapter type."""


class MisfitError(Exception):
    """A layer cannot make the change of a delta weight; only raised and caught in this package."""

    def __init__(self, kind: Literal["method", "rank", "factor"], needed: int | str = 0) -> None:
        super().__init__(kind, needed)
        self.misfit = Misfit(kind, needed)


def find_misfit(layer: Any, delta: DeltaWeight) -> Misfit | None:
    """Return the reason why an adapted layer, which may be on the meta device, cannot make this change."""
    try:
        delta_parameters(layer, delta)
    except MisfitError as error:
        return error.misfit
    return None


def set_delta(layer: Any, delta: DeltaWeight) -> None:
    """Set the parameters of an adapted layer so that it makes the change of `delta`."""
    values = delta_parameters(layer, delta)
    with torch.no_grad():
        for name, parameter in layer_parameters(layer):
            if name in values:
                parameter.copy_(values[name])


def layer_parameters(layer: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a layer's adapter by the names that peft gives them."""
    for name in layer.adapter_layer_names:
        holder = getattr(layer, name, {})
        if ADAPTER_NAME in holder:
            value = holder[ADAPTER_NAME]
            yield name, value if isinstance(value, nn.Parameter) else value.weight


def delta_parameters(layer: Any, delta: DeltaWeight) -> Values:
    """Return the parameters with which a layer makes the change of `delta`; MisfitError if it cannot."""
    fresh = {name: _on_cpu(parameter) for name, parameter in layer_parameters(layer)}
    if "lora_magnitude_vector" in fresh:
        return _dora_values(layer, fresh, delta)
    if "lora_A" in fresh:
        if not isinstance(delta, LoraDelta):
            raise MisfitError("method", _recipe_type(delta))
        return _lora_values(fresh, delta, layer.scaling[ADAPTER_NAME])
    if "hada_w1_a" in fresh:
        if not isinstance(delta, LohaDelta):
            raise MisfitError("method", _recipe_type(delta))
        return _loha_values(fresh, delta, layer.scaling[ADAPTER_NAME])
    if "oft_R" in fresh:
        return _oft_values(fresh, delta)
    if not isinstance(delta, LokrDelta):
        raise MisfitError("method", _recipe_type(delta))
    return _lokr_values(layer, fresh, delta)


def _on_cpu(parameter: nn.Parameter) -> torch.Tensor:
    """Return a copy of the fresh values in float32; zeros for a parameter without values."""
    if parameter.is_meta:
        return torch.zeros(parameter.shape)
    return parameter.detach().float().cpu().clone()


def _recipe_type(delta: DeltaWeight) -> str:
    """Return the `adapter.type` that makes a change of this method; empty if none does."""
    return delta.method if delta.method in ("lora", "dora", "loha", "lokr", "oft") else ""


def _lora_values(fresh: Values, delta: LoraDelta, scale: float) -> Values:
    down, up = fresh["lora_A"], torch.zeros_like(fresh["lora_B"])
    rank = delta.rank
    if rank > len(down):
        raise MisfitError("rank", rank)
    down[:rank] = delta.down.float().reshape(rank, *down.shape[1:])
    up[:, :rank] = _scaled(delta.up, delta.scale / scale).reshape(len(up), rank, *up.shape[2:])
    return {"lora_A": down, "lora_B": up}


def _scaled(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    return tensor.float() if factor == 1 else tensor.float() * factor


def _dora_values(layer: Any, fresh: Values, delta: DeltaWeight) -> Values:
    """Return the values of DoRA; the magnitudes of a LoRA are the norms of the changed weight."""
    direction = delta.direction if isinstance(delta, DoraDelta) else delta
    if not isinstance(direction, LoraDelta) or (isinstance(delta, DoraDelta) and not delta.is_per_output):
        raise MisfitError("method", "" if isinstance(delta, DoraDelta) else _recipe_type(delta))
    values = _lora_values(fresh, direction, layer.scaling[ADAPTER_NAME])
    magnitude = fresh["lora_magnitude_vector"]
    if isinstance(delta, DoraDelta) and delta.norm_of == "merged":
        return values | {"lora_magnitude_vector": delta.magnitude.float().reshape(magnitude.shape)}
    if layer.get_base_layer().weight.is_meta:
        return values
    base = base_weight(layer)
    if isinstance(delta, DoraDelta):
        norms = delta.with_norm_of("merged", base).magnitude
    else:
        norms = torch.linalg.vector_norm((base + direction.dense().reshape(base.shape)).flatten(1), dim=1)
    return values | {"lora_magnitude_vector": norms.reshape(magnitude.shape)}


def base_weight(layer: Any) -> torch.Tensor:
    """Return the frozen weight of a layer, with or without an adapter, in float32 on the CPU."""
    from peft.utils.integrations import dequantize_module_weight

    frozen = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    return dequantize_module_weight(frozen).detach().float().cpu()


def _loha_values(fresh: Values, delta: LohaDelta, scale: float) -> Values:
    rank = delta.rank
    if rank > len(fresh["hada_w1_b"]):
        raise MisfitError("rank", rank)
    values: Values = {}
    for number, side in ((1, delta.first), (2, delta.second)):
        factor = side.scale * (delta.scale / scale if number == 1 else 1)
        up, down = torch.zeros_like(fresh[f"hada_w{number}_a"]), fresh[f"hada_w{number}_b"]
        up[:, :rank] = _scaled(side.up, factor).flatten(1)
        down[:rank] = side.down.float().flatten(1)
        values |= {f"hada_w{number}_a": up, f"hada_w{number}_b": down}
    return values


def _lokr_values(layer: Any, fresh: Values, delta: LokrDelta) -> Values:
    first, second, scale = delta.first.dense(), delta.second, layer.scaling[ADAPTER_NAME]
    small = fresh["lokr_w1"]
    if first.shape != small.shape:
        raise MisfitError("factor")
    values = {"lokr_w1": _scaled(first, delta.scale / scale)}
    if "lokr_w2" in fresh:
        return values | {"lokr_w2": second.dense().reshape(fresh["lokr_w2"].shape)}
    up, down = fresh["lokr_w2_a"], torch.zeros_like(fresh["lokr_w2_b"])
    if isinstance(second, FullDelta):  # peft stores a factor whole from half of its larger side
        raise MisfitError("rank", -(-max(second.shape[:2]) // 2))
    if not isinstance(second, LoraDelta):
        raise MisfitError("method")
    if second.rank > len(down):
        raise MisfitError("rank", second.rank)
    up[:, : second.rank] = _scaled(second.up, second.scale).flatten(1)
    down[: second.rank] = second.down.float().flatten(1)
    return values | {"lokr_w2_a": up, "lokr_w2_b": down}


def lokr_factors(layer: Any, delta: LokrDelta) -> set[str]:
    """Return the values of `adapter.factor` whose small factor has the shape of the delta's."""
    from peft.tuners.lokr.layer import factorization

    small, sides = tuple(delta.first.shape[:2]), layer.get_base_layer().weight.shape[:2]
    options = {"null": -1} | {str(side): side for side in small}
    return {
        text
        for text, factor in options.items()
        if tuple(factorization(side, factor)[0] for side in sides) == small
    }


def _oft_values(fresh: Values, delta: DeltaWeight) -> Values:
    angles = fresh["oft_R"]
    if not isinstance(delta, OftDelta) or delta.angles is None:
        raise MisfitError("method", _recipe_type(delta) if not isinstance(delta, OftDelta) else "")
    if delta.angles.shape[1] != angles.shape[1]:
        raise MisfitError("rank", delta.rotation.shape[-1])
    return {"oft_R": delta.angles.float().expand(len(angles), -1)}
