"""Batches have the bytes of small ones, or are not used."""

from __future__ import annotations

import pytest
import torch

from lorakit.models.exact_batches import ExactBatches


@pytest.mark.parametrize("reference", [1, 2])
@pytest.mark.parametrize(("fits", "exact", "size"), [(8, 8, 8), (4, 8, 4), (8, 4, 4), (2, 1, 2)])
def test_a_batch_that_does_not_fit_or_rounds_in_another_way_is_halved(reference, fits, exact, size):
    sizes: list[int] = []

    def encode(inputs: list[int]) -> list[dict[str, torch.Tensor]]:
        if len(inputs) > max(fits, reference):
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(inputs))
        error = 1e-6 if len(inputs) > max(exact, reference) else 0.0
        return [{"x": torch.tensor(float(one) + error, dtype=torch.float64)} for one in inputs]

    batches = ExactBatches(encode, limit=8, reference=reference)
    results = [one["x"].item() for one in batches.encode(range(37))]
    assert results == list(range(37))
    expected = max(reference, 1 if (fits, exact) == (2, 1) else size)
    assert batches.size == expected
    assert min(sizes) >= reference


def test_an_error_that_is_not_of_memory_is_raised():
    def encode(inputs: list[int]) -> list[dict[str, torch.Tensor]]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        ExactBatches(encode, limit=4).encode(range(4))
