"""Memory settings together, on families of different structure: the plain path's predictions and gradients.

What keeps the form of numbers changes no bit. Quantized weights change results by the error of their format,
and all other settings change nothing on top of it.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from lorakit.models.memory import MemorySettings, offload
from tests.long_tier import some_long
from tests.models.memory.placed import PlacedNetwork, assert_equal

FAMILIES = ("sd15", "sdxl", "sd35", "flux1-dev", "qwen-image", "wan", "z-image")
WITH_MODULATION = ("sd35", "flux1-dev", "qwen-image", "z-image")
QUANTIZATIONS = (None, "int8", "fp8", "nf4")
COMBINATIONS = ((1.0, 1.0, True), (0.6, 0.5, True), (0.0, 0.5, True), (0.6, 0.0, False))
"""Share of streamed blocks, that of blocks that are computed again, and both settings that offload."""
ERRORS = {"int8": (0.01, 0.02), "fp8": (0.04, 0.2), "nf4": (0.15, 0.6)}
"""Relative errors of predictions and of gradients; twice what the worst family has, SDXL in the gradients."""
SAMPLE = [
    ("sd15", "nf4", (0.6, 0.5, True)),
    ("sdxl", "int8", (1.0, 1.0, True)),
    ("flux1-dev", "fp8", (0.6, 0.5, True)),
    ("qwen-image", "nf4", (1.0, 1.0, True)),
    ("wan", "int8", (0.6, 0.5, True)),
    ("z-image", None, (0.6, 0.5, True)),
    ("sd35", None, (0.6, 0.0, False)),
]
QUICK_ERRORS = [("sd15", "nf4"), ("flux1-dev", "int8"), ("flux1-dev", "fp8")]


@pytest.fixture(autouse=True)
def offload_small_tensors(monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 64)


@functools.cache
def plain_numbers(name: str, quantization: str | None = None) -> list[torch.Tensor]:
    return PlacedNetwork(name, quantization=quantization).numbers()


@pytest.mark.parametrize(
    ("name", "quantization", "settings"),
    some_long(itertools.product(FAMILIES, QUANTIZATIONS, COMBINATIONS), *SAMPLE),
)
def test_all_memory_settings_together_change_no_bit(name, quantization, settings):
    """Of predictions in training and in sampling, interleaved, and of all gradients of the adapter."""
    stream, checkpointing, offloads = settings
    memory = MemorySettings(
        stream=stream,
        gradient_checkpointing=checkpointing,
        offload_activations=offloads,
        offload_modulation=offloads and name in WITH_MODULATION,
    )
    placed = PlacedNetwork(name, memory, quantization=quantization)
    assert_equal(placed.numbers(), plain_numbers(name, quantization))


def relative_errors(name: str, quantization: str) -> tuple[float, float]:
    """Return the errors of the predictions in training, and of all gradients, by a quantized network."""
    exact, quantized = plain_numbers(name), plain_numbers(name, quantization)
    num_predictions = 4  # at two timesteps, in training and in sampling

    def error(part: slice) -> float:
        pairs = zip(quantized[part], exact[part], strict=True)
        difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
        return float(difference / sum(float(b.double().square().sum()) for b in exact[part])) ** 0.5

    return error(slice(0, num_predictions)), error(slice(num_predictions, None))


@pytest.mark.parametrize(
    ("name", "quantization"), some_long(itertools.product(FAMILIES, ERRORS), *QUICK_ERRORS)
)
def test_quantized_weights_change_predictions_and_gradients_by_the_error_of_the_format(name, quantization):
    of_predictions, of_gradients = relative_errors(name, quantization)
    highest = ERRORS[quantization]
    assert 1e-4 < of_predictions < highest[0]
    assert 1e-4 < of_gradients < highest[1]
