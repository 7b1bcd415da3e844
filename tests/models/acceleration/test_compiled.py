"""Compiled blocks give the numbers of plain ones, together with checkpointing and quantization."""

from __future__ import annotations

import sys

import pytest
import torch

from lorakit import adapters
from lorakit.models.acceleration import compiled
from lorakit.models.acceleration.compiled import CompiledBlocks
from lorakit.models.memory import MemorySettings, placement
from tests.long_tier import some_long
from tests.models.acceleration.tiny_networks import Adapted, difference

CPU = torch.device("cpu")
PROBLEM = compiled.compile_problem(CPU)
needs_compiler = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


@needs_compiler
@pytest.mark.parametrize(
    ("name", "settings"),
    some_long(
        [
            ("flux1-dev", MemorySettings()),
            ("flux1-dev", MemorySettings(gradient_checkpointing=1.0)),
            ("sd15", MemorySettings(gradient_checkpointing=0.5)),
            ("sd3", MemorySettings(quantize="nf4")),
            ("sd3", MemorySettings(quantize="int8", gradient_checkpointing=1.0)),
            ("qwen-image", MemorySettings()),
        ],
        ("flux1-dev", MemorySettings(gradient_checkpointing=1.0)),
        ("sd3", MemorySettings(quantize="nf4")),
    ),
)
def test_compiled_blocks_have_the_gradients_of_plain_ones(name, settings):
    adapted = Adapted(name, settings)
    plain = adapted.gradients()
    blocks = CompiledBlocks(adapted.denoiser)
    with blocks.active():
        first, again = adapted.gradients(), adapted.gradients()
    assert len(blocks) > 1
    assert difference(plain, first) <= 1e-4
    assert difference(first, again) == 0
    assert difference(plain, adapted.gradients()) == 0, "outside, the code is that of before"


@needs_compiler
def test_equal_blocks_share_their_code_and_shapes_do_not_depend_on_their_order():
    """A shape is compiled by itself, so that its numbers are those of a run that saw it first."""
    from torch._dynamo.utils import counters

    adapted = Adapted("flux1-dev")
    small = adapted.inputs[0][0][..., ::2]
    adapted.inputs[1] = (small, *adapted.inputs[0][1:])
    results, graphs = [], []
    for order in ([0, 1], [1, 0]):
        torch._dynamo.reset()
        counters.clear()
        with CompiledBlocks(adapted.denoiser).active():
            gradients = {number: adapted.gradients(number) for number in (*order, *order)}
        results.append(gradients)
        graphs.append(counters["stats"]["unique_graphs"])
    assert all(difference(results[0][number], results[1][number]) == 0 for number in (0, 1))
    assert graphs[0] == graphs[1] == 2 * 3, "each of three blocks once for each shape, and never again"


@needs_compiler
def test_an_adapter_that_is_switched_off_stays_so_in_compiled_blocks():
    adapted = Adapted("sd3")
    with torch.no_grad(), CompiledBlocks(adapted.denoiser).active():
        trained = adapted.predict(*adapted.inputs[0])
        with adapters.adapters_disabled(adapted.denoiser):
            plain = adapted.predict(*adapted.inputs[0])
        again = adapted.predict(*adapted.inputs[0])
    with torch.no_grad(), adapters.adapters_disabled(adapted.denoiser):
        expected = adapted.predict(*adapted.inputs[0])
    assert (plain - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(trained, again)
    assert (trained - plain).abs().max() > 1e-4


def test_a_block_with_memory_settings_is_compiled_inside_of_them():
    """Streaming and recomputing are code for the host, which stays outside of what is compiled."""
    adapted = Adapted("sd3", MemorySettings(gradient_checkpointing=1.0))
    block = next(iter(adapted.denoiser.transformer_blocks))
    wrapper = block.forward
    assert isinstance(wrapper, placement.PlacedBlock)
    before = wrapper.forward
    with CompiledBlocks(adapted.denoiser).active():
        assert block.forward is wrapper
        assert wrapper.forward is not before
    assert wrapper.forward == before


@pytest.mark.parametrize(("platform", "hint"), [("win32", True), ("linux", False)])
def test_a_gpu_without_triton_is_named_and_on_windows_its_package_too(monkeypatch, platform, hint):
    from torch.utils import _triton

    monkeypatch.setattr(_triton, "has_triton_package", lambda: False)
    monkeypatch.setattr(sys, "platform", platform)
    problem = compiled.compile_problem(torch.device("cuda"))
    assert "triton is not installed" in problem
    assert ("triton-windows" in problem) == hint
    assert "mps" in compiled.compile_problem(torch.device("mps"))


def test_a_cpu_without_a_c_compiler_is_named():
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        with config.patch("cpp.cxx", ("no-such-compiler",)):  # monkeypatch would remove it
            assert "no C++ compiler" in compiled.compile_problem(CPU)
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
