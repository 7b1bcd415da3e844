"""Convolutions with weights that are arranged once: the same bits, and plain ones where they do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorakit import adapters
from lorakit.models.acceleration import packed_convolutions
from lorakit.models.acceleration.packed_convolutions import PackedConvolution
from lorakit.models.acceleration.packed_convolutions import packed_convolutions as packed
from tests.models.families.common import noise_for, two_timesteps
from tests.models.memory.placed import PlacedNetwork

needs_bf16 = pytest.mark.skipif(
    not packed_convolutions.is_available(), reason="this CPU has no such kernels for bfloat16"
)


@pytest.fixture(autouse=True)
def pack_small_weights(monkeypatch):
    monkeypatch.setattr(packed_convolutions, "MIN_BYTES", 0)


def layer(*args, dtype: torch.dtype = torch.bfloat16, **kwargs) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*args, **kwargs).to(dtype).requires_grad_(False)


def numbers(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    output = network(x)
    (gradient,) = torch.autograd.grad(output, x, output.detach().cos())
    return output.detach(), gradient


@needs_bf16
@pytest.mark.parametrize(
    "convolution",
    [
        layer(4, 64, 3, padding=1),
        layer(64, 4, 3, padding=1),
        layer(96, 64, 1),
        layer(32, 48, (1, 3), padding=(0, 1), bias=False),
        layer(64, 64, 3),
    ],
    ids=["in", "out", "pointwise", "a row", "without padding"],
)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 16, 12), (3, 5, 9)])
def test_results_and_input_gradients_have_the_same_bits(convolution, batch, height, width):
    shape = (batch, convolution.in_channels, height, width)
    plain = numbers(convolution, shape)
    with packed(nn.Sequential(convolution)) as count:
        assert count == 1
        result = convolution(torch.ones(shape, dtype=torch.bfloat16, requires_grad=True))
        assert type(result.grad_fn).__name__ == PackedConvolution.__name__ + "Backward"
        values = numbers(convolution, shape)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(plain, values, strict=True))
    assert all(map(torch.equal, plain, numbers(convolution, shape)))  # afterwards as before


@pytest.mark.parametrize(
    "convolution",
    [
        layer(8, 8, 3, dtype=torch.float32),
        layer(8, 8, 3, dtype=torch.float16),
        layer(8, 8, 3, stride=2),
        layer(8, 8, 3, groups=2),
        layer(8, 8, 3, dilation=2),
        layer(8, 8, 3, padding="same"),
        layer(8, 8, 3, padding=1, padding_mode="reflect"),
        layer(8, 8, 3, device="meta"),
        layer(8, 8, 3).requires_grad_(True),
    ],
    ids=["fp32", "fp16", "stride", "groups", "dilation", "same", "reflect", "meta", "trained"],
)
def test_other_convolutions_are_left_alone(convolution):
    with packed(nn.Sequential(convolution)) as count:
        assert count == 0
        assert "forward" not in vars(convolution)


@needs_bf16
@pytest.mark.parametrize("change", ["small", "large", "bits"])
def test_weights_that_are_small_or_too_large_or_give_other_bits_are_left_alone(change, monkeypatch):
    first, second = layer(16, 16, 3), layer(16, 24, 3)
    if change == "small":
        monkeypatch.setattr(packed_convolutions, "MIN_BYTES", second.weight.nbytes + 1)
    elif change == "large":
        monkeypatch.setattr(
            packed_convolutions, "MAX_BYTES", 2 * (first.weight.nbytes + second.weight.nbytes) - 1
        )
    else:
        convolve = packed_convolutions._convolve
        monkeypatch.setattr(packed_convolutions, "_convolve", lambda *args: convolve(*args) * 1.01)
    with packed(nn.Sequential(first, second)) as count:
        assert count == 0


@needs_bf16
def test_inputs_of_another_kind_are_computed_plainly():
    """Such as images with the channels of a pixel side by side, empty batches and fake tensors."""
    convolution = layer(16, 16, 3, padding=1)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    by_pixel = x.to(memory_format=torch.channels_last)
    plain = convolution(by_pixel)
    with packed(nn.Sequential(convolution)):
        assert torch.equal(convolution(by_pixel), plain)
        assert convolution(by_pixel).stride() == plain.stride()
        assert convolution(x[:0]).shape == (0, 16, 8, 8)


@needs_bf16
def test_a_unet_with_an_adapter_has_the_same_predictions_and_gradients():
    placed = PlacedNetwork("sd15")
    network = placed.network.bfloat16()
    cond = {key: value.bfloat16() for key, value in placed.cond.items()}

    def numbers_of() -> list[torch.Tensor]:
        parameters = [parameter for _, parameter in adapters.trainable_parameters(network)]
        timestep = two_timesteps(placed.family)[:1]
        prediction = placed.family.predict(network, noise_for("sd15").bfloat16(), timestep, cond)
        return [prediction.detach(), *torch.autograd.grad(prediction.float().square().mean(), parameters)]

    plain = numbers_of()
    with packed(network) as count:
        assert count > 10
        values = numbers_of()
    assert all(map(torch.equal, plain, values))
