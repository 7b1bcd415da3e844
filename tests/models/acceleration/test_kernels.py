"""Kernels chosen by the time of a step, with all candidates listed."""

from __future__ import annotations

import time

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from lorakit.models.acceleration import kernels
from lorakit.models.acceleration.kernels import choose_kernels, kernels_in_force
from lorakit.models.acceleration.settings import Kernels
from tests.models.acceleration.tiny_networks import Adapted, difference

CPU = torch.device("cpu")


@pytest.mark.parametrize("attention", ["cudnn", "flash", "efficient", "math"])
def test_the_chosen_attention_comes_first_and_the_state_of_before_returns(attention):
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with kernels_in_force(Kernels(attention), torch.nn.Identity()):
        order = _cur_sdpa_kernel_backends(with_priority=True)
    assert order[0] == kernels.ATTENTION_ORDER[attention][0]
    assert attention == "math" or SDPBackend.MATH in order, "for inputs that the first does not support"
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.parametrize("chosen", [Kernels("math"), Kernels(channels_last=True), Kernels(tf32=True)])
def test_other_kernels_give_the_same_gradients_up_to_rounding(chosen):
    adapted = Adapted("sd15")
    plain = adapted.gradients()
    formats = [p.stride() for p in adapted.denoiser.parameters()]
    with kernels_in_force(chosen, adapted.denoiser):
        changed = [p.stride() for p in adapted.denoiser.parameters()]
        gradients = adapted.gradients()
    assert (changed != formats) == chosen.channels_last
    assert [p.stride() for p in adapted.denoiser.parameters()] == formats
    assert difference(plain, gradients) <= 1e-4
    assert difference(plain, adapted.gradients()) == 0


def test_the_fastest_kernels_win_and_every_candidate_is_listed(monkeypatch):
    """A step that sleeps longer with one choice than with another."""
    monkeypatch.setattr(kernels, "MEASURED_SECONDS", 0.01)
    network = torch.nn.Sequential(*[torch.nn.Conv2d(4, 4, 3) for _ in range(8)]).requires_grad_(False)

    def step() -> None:
        last = network[0].weight.is_contiguous(memory_format=torch.channels_last)
        is_math = _cur_sdpa_kernel_backends() == [SDPBackend.MATH]
        time.sleep(0.03 - 0.02 * last + 0.01 * is_math)

    best, measured = choose_kernels(step, network, CPU, precision="fp32")
    assert best == Kernels(channels_last=True)
    assert [m.kernels for m in measured] == [Kernels(), Kernels("math"), Kernels(channels_last=True)]
    assert all(m.seconds for m in measured)
    best, measured = choose_kernels(step, network, CPU, precision="fp32", movable=False)
    assert best == Kernels()
    assert len(measured) == 2


def test_kernels_that_fail_are_listed_with_the_reason():
    def step() -> None:
        if _cur_sdpa_kernel_backends() == [SDPBackend.MATH]:
            raise RuntimeError("no kernel for these inputs\nand more lines")

    best, measured = choose_kernels(step, torch.nn.Identity(), CPU, precision="fp32")
    assert best == Kernels()
    assert [(m.kernels.attention, m.problem) for m in measured] == [
        ("default", None),
        ("math", "no kernel for these inputs"),
    ]


@pytest.mark.parametrize(
    ("device", "precision", "attention", "tf32"),
    [
        ("cuda", "bf16", {"cudnn", "flash", "efficient"}, True),
        ("cuda", "fp32", {"cudnn", "flash", "efficient"}, False),
        ("cpu", "bf16", {"math"}, False),
        ("mps", "fp16", set(), False),
    ],
)
def test_candidates_are_those_that_a_device_has(device, precision, attention, tf32):
    """TF32 would round a run in fp32, so it is for networks in half precision."""
    changes = kernels.alternatives(
        Kernels(), torch.nn.Identity(), torch.device(device), precision=precision, movable=True
    )
    tried = [change(Kernels()) for change in changes]
    assert {k.attention for k in tried} - {"default"} == attention
    assert any(k.tf32 for k in tried) == tf32
