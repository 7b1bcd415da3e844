"""Networks whose code reads values: routed experts and empty image embeddings are counted, not assumed."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lorakit import adapters
from lorakit.models.families import detect_family
from lorakit.planner import networks
from lorakit.planner.meter import PassMeter
from lorakit.planner.network_count import count_network
from lorakit.planner.short_network import pass_inputs
from lorakit.planner.text_shapes import text_shapes
from tests import tiny


@pytest.mark.parametrize("row", ["hidream", "hunyuan-video-1.5"])
def test_a_network_that_reads_values_has_the_operations_of_a_real_pass(row):
    folder = tiny.tiny_folder(row)
    family = detect_family(folder, ())
    pipe = family.load(folder, dtype=torch.float32)
    shapes = text_shapes(family, folder, ("a photo",), (64, 64))
    latents = family.latent_shape(pipe, 64, 64)
    counted = count_network(
        family,
        lambda: networks.build_denoiser(family, folder),
        lambda network: adapters.inject_adapter(network, rank=4, alpha=4, targets=family.target_modules),
        latents,
        shapes,
        dtype=torch.float32,
    )
    network = family.denoiser(pipe)
    adapters.inject_adapter(network, rank=4, alpha=4, targets=family.target_modules)
    with FlopCounterMode(display=False) as flops:
        family.predict(network, *pass_inputs(family, latents, shapes, torch.float32))
    forward = [(part.number, part.passes.forward) for part in counted.parts]
    total = sum(number * (work.linear + work.convolution + work.attention) for number, work in forward)
    assert total == pytest.approx(flops.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("fill", "is_zero"), [(torch.zeros_like, True), (torch.ones_like, False)], ids=["zeros", "ones"]
)
def test_a_comparison_of_a_filled_tensor_has_values_until_something_is_written(fill, is_zero):
    with FakeTensorMode():
        source = torch.empty(4, 3)
        with PassMeter(set()):
            filled = fill(source)
            assert bool(torch.all(filled[1:] == 0)) == is_zero
            filled.copy_(source)
            assert isinstance(filled == 0, FakeTensor)


def test_each_expert_is_chosen_equally_often():
    with FakeTensorMode():
        scores = torch.empty(8, 4)
        with PassMeter(set()):
            _, chosen = torch.topk(scores, 2)
    assert chosen.shape == (8, 2)
    assert chosen.flatten().bincount().tolist() == [4, 4, 4, 4]
