"""Gradients of attention in half precision on a CPU, compared with float64 and with torch's kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from lorakit.models.acceleration import cpu_attention

MASKS = {
    "no mask": None,
    "a mask of texts": torch.arange(30) < torch.tensor([[[[30]]], [[[20]]], [[[7]]]]),
    "added numbers": torch.linspace(-3, 3, 1500).view(50, 30),
}


def gradients(dtype: torch.dtype, mask: torch.Tensor | None, width: int = 16) -> list[torch.Tensor]:
    """Gradients of attention of 3 inputs with 4 heads, of 50 queries and 30 keys, in float64."""
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(3, length, 4, width, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for length in (50, 30, 30)
    ]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out = functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
    out.backward(torch.randn(out.shape, generator=generator).to(dtype))
    return [tensor.grad.double() for tensor in inputs if tensor.grad is not None]


@pytest.mark.parametrize("scores", [2**20, 5000, 1000], ids=["at once", "by item", "by head"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_gradients_in_half_precision_are_those_of_float64_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, scores: int, name: str, dtype: torch.dtype, error: float
) -> None:
    cpu_attention.use_matrix_products()
    monkeypatch.setattr(cpu_attention, "MAX_SCORES", scores)
    exact = gradients(torch.float64, MASKS[name])
    computed = gradients(dtype, MASKS[name])
    for one, other in zip(computed, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < error


@pytest.mark.parametrize(
    ("limits", "dtype", "uses_products"),
    [
        ({}, torch.bfloat16, True),
        ({}, torch.float32, False),
        ({"_MAX_HEAD_SCORES": 1}, torch.bfloat16, False),
        ({"_NARROW_SCORES": 1}, torch.bfloat16, False),
    ],
    ids=["half precision", "float32", "long", "narrow heads"],
)
def test_only_what_products_speed_up_is_computed_by_them(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], dtype: torch.dtype, uses_products: bool
) -> None:
    cpu_attention.use_matrix_products()
    for name, value in limits.items():
        monkeypatch.setattr(cpu_attention, name, value)

    exact = gradients(torch.float64, None)
    by_products, calls = cpu_attention.attention_gradients, []

    def counted(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        calls.append(inputs)
        return by_products(*inputs)

    monkeypatch.setattr(cpu_attention, "attention_gradients", counted)
    computed = gradients(dtype, None)
    assert bool(calls) == uses_products
    for one, other in zip(computed, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.01
