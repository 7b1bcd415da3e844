"""The precision that `train.precision: auto` chooses for a device."""

from __future__ import annotations

import pytest

from lorakit.models.precision import automatic_precision


@pytest.mark.parametrize(
    ("platform", "preferred", "value", "words"),
    [
        ("cuda", "bf16", "bf16", "the GPU computes in it"),
        ("cuda", "fp16", "fp16", "no bf16"),
        ("mps", "fp16", "fp16", "no bf16"),
        ("xpu", "bf16", "bf16", "the GPU computes in it"),
        ("hpu", "fp32", "fp32", "no half precision"),
        ("cpu", "bf16", "fp32", "CPU"),
    ],
)
def test_half_precision_is_for_devices_that_compute_in_it(platform, preferred, value, words):
    choice = automatic_precision(platform, preferred)
    assert choice.value == value
    assert words in choice.reason
    assert choice.to_json() == {"value": value, "reason": choice.reason}
