"""The repeated blocks of every denoiser, and the modulation layers among their layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from lorakit.models.memory import MemorySettings, blocks, placement
from lorakit.models.memory.host_modulation import modulation_layers
from tests import tiny
from tests.long_tier import some_long
from tests.models.families.common import CAPTIONS, encode_all, family_of, noise_for, two_timesteps

NAMES = sorted(tiny.ROWS)
QUICK = ("sdxl", "flux1-dev", "flux3", "hidream", "wan-2.2", "z-image", "kandinsky5", "qwen-image")
BATCH = 2


@contextmanager
def recorded_inputs(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Any]]]:
    """Record the first input of each call of these modules, by name, in the order of the first calls."""
    inputs: dict[str, list[Any]] = {}

    def record(name: str) -> Any:
        return lambda module, args, kwargs: inputs.setdefault(name, []).append(args[0] if args else None)

    hooks = [m.register_forward_pre_hook(record(name), with_kwargs=True) for name, m in modules.items()]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def predict(name: str) -> torch.nn.Module:
    """Let the network of a family predict `BATCH` samples of two captions at each of two timesteps."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    network = family.denoiser(pipe)
    conds = encode_all(name, pipe, CAPTIONS[:BATCH])
    noise = noise_for(name, rows=BATCH)
    with torch.no_grad():
        for timestep in two_timesteps(family):
            family.predict(network, noise, timestep.repeat(BATCH), family.collate(conds))
    return network


@pytest.mark.parametrize("name", some_long(NAMES, *QUICK))
def test_every_block_runs_and_none_contains_another(name):
    network = family_of(name).denoiser(tiny.tiny_pipeline(name))
    found = blocks.repeated_blocks(network)
    modules = {block.name: block.module for block in found}
    with recorded_inputs(modules) as inputs:
        predict(name)
    idle = set(modules) - set(inputs)
    assert idle == {block for block in modules if "mode_blocks.image_cond" in block}  # of an edited image
    assert all(not other.startswith(f"{block}.") for block in modules for other in modules)
    in_blocks = sum(p.numel() for module in modules.values() for p in module.parameters())
    assert sum(blocks.block_bytes(network).values()) >= in_blocks


@pytest.mark.parametrize("name", some_long(NAMES, *QUICK))
def test_modulation_layers_see_one_vector_a_sample(name):
    """And all layers of blocks that see so few rows are modulation, except for a U-Net's timesteps."""
    network = family_of(name).denoiser(tiny.tiny_pipeline(name))
    in_blocks = tuple(f"{block.name}." for block in blocks.repeated_blocks(network))
    linear = {key: module for key, module in network.named_modules() if isinstance(module, nn.Linear)}
    with recorded_inputs(linear) as inputs:
        predict(name)
    one_vector = {
        key for key, values in inputs.items() if all(v.ndim == 2 and len(v) <= 2 * BATCH for v in values)
    }
    modulation = set(modulation_layers(network))
    for key in modulation:
        assert all(v.numel() // v.shape[-1] <= 2 * BATCH for v in inputs.get(key, [])), key
    missed = {key for key in one_vector - modulation if key.startswith(in_blocks)}
    assert {key for key in missed if not key.endswith("time_emb_proj") and ".experts." not in key} == set()


@pytest.mark.parametrize("name", some_long(NAMES, *QUICK))
def test_a_network_whose_blocks_are_all_streamed_still_knows_its_device(name):
    """Pipelines ask the network for it, which looks at its first parameter."""
    network = family_of(name).denoiser(tiny.build(name)).to("meta")
    placement.place(network, MemorySettings(stream=1.0), torch.device("meta"))
    parameter = next(network.parameters())
    streamed = {id(p) for block in blocks.repeated_blocks(network) for p in block.module.parameters()}
    assert id(parameter) not in streamed


def sizes_of(*sizes: int) -> list[blocks.Block]:
    """Return blocks of one layer each, with this many outputs for 64 inputs."""
    return [
        blocks.Block(str(i), nn.Linear(64, size, bias=False).requires_grad_(False))
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("sizes", "share", "chosen"),
    [
        ((8, 8, 8, 8), 0.0, []),
        ((8, 8, 8, 8), 0.25, ["1"]),
        ((8, 8, 8, 8), 0.5, ["0", "2"]),
        ((8, 8, 8, 8), 1.0, ["0", "1", "2", "3"]),
        ((1, 32, 1, 32), 0.5, ["0", "2", "3"]),
    ],
)
def test_streamed_blocks_are_spread_and_hold_their_share_of_the_weights(sizes, share, chosen):
    assert [block.name for block in blocks.spread_blocks(sizes_of(*sizes), share)] == chosen


@pytest.mark.parametrize(
    ("share", "chosen"), [(0.0, []), (0.2, ["2"]), (0.4, ["1", "2"]), (0.5, ["0", "1", "2"])]
)
def test_narrow_blocks_are_recomputed_first_and_of_equal_ones_the_first(share, chosen):
    found = [blocks.Block(str(i), nn.Linear(width, 8)) for i, width in enumerate((64, 32, 16, 64, 64))]
    assert [block.name for block in blocks.narrowest_blocks(found, share)] == chosen
