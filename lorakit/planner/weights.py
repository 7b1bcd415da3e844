"""Numbers of frozen weights of a network's parts, by what can be done with them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lorakit.models.memory.host_modulation import is_modulation
from lorakit.models.memory.quantize import is_quantizable


@dataclass(frozen=True)
class WeightCount:
    """Numbers of frozen weights of one part of a network."""

    quantizable: int = 0
    """In linear layers that `memory.quantize` quantizes."""
    quantizable_modulation: int = 0
    """Those of them that `memory.offload_modulation` keeps in host memory."""
    modulation: int = 0
    """In layers that are kept in host memory and cannot be quantized."""
    other: int = 0
    """In all other layers: norms, convolutions, biases, layers that keep their precision."""
    largest: int = 0
    """In the largest linear layer."""
    width: int = 0
    """Most inputs that a layer has, in features or channels."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.quantizable + self.quantizable_modulation + self.modulation + self.other


def count_weights(network: nn.Module, part: str) -> WeightCount:
    """Count the weights of a part of a network by its name ("" for all); it has no adapter yet."""
    sizes = dict.fromkeys(("quantizable", "quantizable_modulation", "modulation", "other"), 0)
    largest, width, seen = 0, 0, set()
    for name, module in network.get_submodule(part).named_modules():
        full = f"{part}.{name}" if part and name else part or name
        width = max(width, _inputs(module))
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            sizes[_kind(full, module, key)] += parameter.numel()
            if key == "weight" and isinstance(module, nn.Linear):
                largest = max(largest, parameter.numel())
    return WeightCount(**sizes, largest=largest, width=width)


def _kind(name: str, module: nn.Module, key: str) -> str:
    is_vector = is_modulation(name, module)
    if key == "weight" and is_quantizable(name, module):
        return "quantizable_modulation" if is_vector else "quantizable"
    return "modulation" if is_vector else "other"


def _inputs(module: nn.Module) -> int:
    values = vars(module)  # diffusers warns of attributes that are settings of the network
    inputs = values.get("in_features") or values.get("in_channels")
    return inputs if isinstance(inputs, int) else 0
