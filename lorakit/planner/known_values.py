"""Operations on fake tensors, with those values that the code of a network reads.

Tensors that depend on no weight, such as masks, lengths and positions, are computed. Of tensors that are
filled with one number the number is known. A router is assumed to choose all experts equally often.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

_MAX_REAL = 1 << 20  # numbers in a new tensor that is computed
_ATEN = torch.ops.aten
_FILLED = {_ATEN.zeros_like: 0, _ATEN.new_zeros: 0, _ATEN.ones_like: 1, _ATEN.new_ones: 1}
"""Operations whose result is filled with one number."""
_COMPARISONS = (_ATEN.eq, _ATEN.ne, _ATEN.lt, _ATEN.le, _ATEN.gt, _ATEN.ge)
_BY_MASK = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_)
"""Operations whose second argument is a list of positions or masks."""


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested containers."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


class KnownValues:
    """Runs operations on fake tensors, and remembers which of these are filled with one number."""

    def __init__(self) -> None:
        self._numbers: dict[int, float] = {}
        """The number that fills a storage, until something is written into it."""

    def execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on fake tensors, or compute it if all its inputs have values."""
        kind = func._overloadpacket
        if kind in _COMPARISONS:
            args = tree_map(self._with_value, args)
        inputs = list(tensors_in((args, kwargs)))
        if not any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in inputs):
            return _compute(func, args, kwargs, has_inputs=bool(inputs))
        if kind in _BY_MASK:  # a mask with values selects a known number
            with _disable_current_modes():
                args = (args[0], _mask_positions(args[1]), *args[2:])
        if func._schema.is_mutable:
            for tensor in inputs:
                self._numbers.pop(_key(tensor), None)
        result = func(*args, **kwargs)
        if kind in _FILLED and result.numel() <= _MAX_REAL:
            self._numbers[_key(result)] = _FILLED[kind]
            weakref.finalize(result.untyped_storage(), self._numbers.pop, _key(result), None)
        return _with_even_choices(result, args[0]) if kind is _ATEN.topk else result

    def _with_value(self, value: Any) -> Any:
        """Return a tensor that is known to be filled with one number as a real one, without memory."""
        if not isinstance(value, FakeTensor) or _key(value) not in self._numbers:
            return value
        with _disable_current_modes():
            return torch.tensor(self._numbers[_key(value)], dtype=value.dtype).expand(value.shape)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _compute(func: Any, args: Any, kwargs: Any, *, has_inputs: bool) -> Any:
    if not has_inputs:
        result = func(*args, **kwargs)
        if any(tensor.numel() > _MAX_REAL for tensor in tensors_in(result)):
            return result
    with _disable_current_modes():
        return func(*args, **kwargs)


def _with_even_choices(result: Any, scores: torch.Tensor) -> Any:
    """Return the result of `topk` with positions that have values: each position equally often."""
    values, positions = result
    dimension = next((d for d in range(scores.dim()) if values.shape[d] != scores.shape[d]), -1)
    if not isinstance(positions, FakeTensor) or positions.numel() > _MAX_REAL:
        return result
    with _disable_current_modes():
        even = torch.arange(positions.numel()).reshape(positions.shape) % scores.shape[dimension]
    return values, even


def _mask_positions(indices: Any) -> list[Any]:
    positions: list[Any] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        positions += index.nonzero().unbind(1) if is_mask else [index]
    return positions
