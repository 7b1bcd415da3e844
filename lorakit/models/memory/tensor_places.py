"""The places where modules keep frozen tensors: parameters, buffers, and the scales of quantized weights.

A place can be read and set, so that the same tensor may be in host memory now and on a device later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in an attribute of an object; of a parameter `data`, so that the parameter stays the same."""

    owner: Any
    attribute: str
    is_buffer: bool = False

    def get(self) -> torch.Tensor:
        """Return the tensor without its gradient."""
        tensor: torch.Tensor = getattr(self.owner, self.attribute)
        return tensor

    def set(self, tensor: torch.Tensor) -> None:
        """Put another tensor there, of the same shape and type."""
        if self.is_buffer:
            self.owner._buffers[self.attribute] = tensor
        else:
            setattr(self.owner, self.attribute, tensor)


def all_places(module: nn.Module) -> Iterator[TensorPlace]:
    """Yield all places of tensors in a module, trained ones too."""
    for parameter in module.parameters():
        yield from _parameter_places(parameter)
    for part in module.modules():
        yield from _buffer_places(part)


def frozen_places(module: nn.Module) -> Iterator[TensorPlace]:
    """Yield the places of a module's frozen tensors, without adapters, of which some parts are frozen too."""
    adapter = _adapter_parameters(module)
    for parameter in module.parameters():
        if not parameter.requires_grad and id(parameter) not in adapter:
            yield from _parameter_places(parameter)
    for part in module.modules():
        yield from _buffer_places(part)


def frozen_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's frozen tensors, each storage counted once."""
    return count_bytes(frozen_places(module))


def count_bytes(places: Iterable[TensorPlace]) -> int:
    """Return the bytes of the tensors at some places, each storage counted once."""
    sizes = {}
    for place in places:
        tensor = place.get()
        sizes[storage_key(tensor)] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def storage_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a key that two places share if they hold the same numbers in the same memory."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def is_dense(tensor: torch.Tensor) -> bool:
    """Return True if the elements fill their memory once each, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _parameter_places(parameter: nn.Parameter) -> Iterator[TensorPlace]:
    yield TensorPlace(parameter, "data")
    yield from _attribute_places(parameter, depth=2)


def _attribute_places(owner: Any, depth: int) -> Iterator[TensorPlace]:
    """Yield tensors in attributes: bitsandbytes keeps the scales of a quantized parameter there."""
    for name, value in vars(owner).items():
        if isinstance(value, nn.Module | nn.Parameter) or name == "grad":
            continue
        if isinstance(value, torch.Tensor):
            yield TensorPlace(owner, name)
        elif depth and type(value).__name__ == "QuantState":
            yield from _attribute_places(value, depth - 1)


def _buffer_places(part: nn.Module) -> Iterator[TensorPlace]:
    for name, buffer in part.named_buffers(recurse=False):
        if buffer is not None:
            yield TensorPlace(part, name, is_buffer=True)


def _adapter_parameters(module: nn.Module) -> set[int]:
    """Return the identities of the parameters of injected adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, BaseTunerLayer)
        for name in layer.adapter_layer_names
        for parameter in _parameters(getattr(layer, name, None))
    }


def _parameters(part: Any) -> Iterator[nn.Parameter]:
    if isinstance(part, nn.Module | nn.ParameterDict):
        yield from part.parameters()
