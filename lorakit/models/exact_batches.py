"""Several inputs encoded at once, where that gives each of them the bytes that it has in a small batch.

Kernels are chosen by shape, so a larger batch can round differently. The first batch of each size is encoded
in both ways; a size with other bytes is halved, and so is one that does not fit the memory. Results therefore
depend neither on the free memory nor on the inputs that happen to be encoded together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from lorakit.models import device as devices
from lorakit.models import memory

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]


class ExactBatches(Generic[T]):
    """Batches of inputs of one shape.

    `encode` returns the tensors of each input. Batches of `reference` inputs decide the bytes, where the last
    ones are repeated if there are fewer; no batch has more than `limit`.
    """

    def __init__(self, encode: Callable[[list[T]], list[Tensors]], *, limit: int, reference: int = 1) -> None:
        self._encode, self.reference = encode, reference
        self.size = max(reference, limit)
        """Inputs of the largest batch now."""
        self._checked: set[int] = set()

    def encode(self, inputs: Sequence[T]) -> list[Tensors]:
        """Return the tensors of each input."""
        results: list[Tensors] = []
        while rest := list(inputs[len(results) :]):
            if len(rest) >= self.size > self.reference:
                results += self._encode_batch(rest[: self.size])
            else:
                results += self._encode_reference(rest[: self.reference])
        return results

    def _encode_reference(self, inputs: list[T]) -> list[Tensors]:
        padded = inputs + inputs[-1:] * (self.reference - len(inputs))
        return self._encode(padded)[: len(inputs)]

    def _encode_batch(self, inputs: list[T]) -> list[Tensors]:
        size = len(inputs)
        try:
            results = self._encode(inputs)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            results = None
        if results is None:
            memory.empty_device_cache(devices.default_device())
            self.size = max(self.reference, size // 2)
            return self.encode(inputs)
        if size in self._checked:
            return results
        starts = range(0, size, self.reference)
        expected = [one for i in starts for one in self._encode_reference(inputs[i : i + self.reference])]
        if all(_are_equal(a, b) for a, b in zip(results, expected, strict=True)):
            self._checked.add(size)
        else:
            self.size = max(self.reference, size // 2)
        return expected


def _are_equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
