"""Memory settings on networks of different structure: less on the device, and the same bits."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from lorakit import adapters
from lorakit.adapters.targets import find_target_modules
from lorakit.core.errors import ConfigError
from lorakit.models import memory
from lorakit.models.memory import MemorySettings, blocks, offload, placement, tensor_places
from lorakit.models.memory.host_modulation import HostModulation, modulation_layers
from tests import tiny
from tests.models.families.common import two_timesteps
from tests.models.memory.placed import PlacedNetwork, assert_equal

NAMES = ["sd15", "sd35", "flux1-dev", "wan", "qwen-image", "z-image"]
WITH_MODULATION = ["sd35", "flux1-dev", "qwen-image", "z-image"]
ALONE = {
    "stream": MemorySettings(stream=1.0),
    "half of the blocks recomputed": MemorySettings(gradient_checkpointing=0.5),
    "offload_activations": MemorySettings(offload_activations=True),
}


@pytest.fixture(autouse=True)
def offload_small_tensors(monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 64)


@functools.cache
def plain_numbers(name: str) -> list[torch.Tensor]:
    return PlacedNetwork(name).numbers()


@pytest.mark.parametrize("settings", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("name", NAMES)
def test_a_memory_setting_changes_no_bit(name, settings):
    placed = PlacedNetwork(name, settings)
    assert_equal(placed.numbers(), plain_numbers(name))


@pytest.mark.parametrize("name", WITH_MODULATION)
def test_modulation_on_the_host_changes_no_bit(name):
    placed = PlacedNetwork(name, MemorySettings(offload_modulation=True))
    assert_equal(placed.numbers(), plain_numbers(name))


@pytest.mark.parametrize("method", ["dora", "lokr", "oft"])
def test_adapters_that_read_the_base_weight_train_through_streamed_blocks(method):
    """DoRA needs the norm of the weight in each pass."""
    results = []
    for settings in (None, MemorySettings(stream=1.0, gradient_checkpointing=0.5)):
        placed = PlacedNetwork("sd35", None)
        network = placed.family.denoiser(tiny.build("sd35"))
        targets = find_target_modules(network, placed.family.target_modules)
        spec = adapters.AdapterSpec(method, 2, 2.0, tuple(targets))
        adapters.inject_adapter(network, spec=spec)
        if settings:
            placement.place(network, settings, torch.device("cpu"))
        placed.network = network
        results.append(placed.numbers())
    assert_equal(*results)


@pytest.mark.parametrize("name", ["sd15", "flux1-dev", "lumina2", "z-image"])
def test_at_most_two_streamed_blocks_are_on_the_device(name):
    """Measured by the memory of all blocks' device storages whenever a layer computes."""
    placed = PlacedNetwork(name, MemorySettings(stream=1.0))
    ring = placed.placement.ring
    storages = [next(iter(block.views))[2].untyped_storage() for block in ring.blocks]
    measured = []
    for module in placed.network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda *_: measured.append(sum(s.nbytes() for s in storages)))
    placed.numbers()
    sizes = sorted(block.size for block in ring.blocks)
    assert 0 < max(measured) <= ring.peak_bytes <= sizes[-1] + sizes[-2] < sum(sizes)
    ring.release_all()
    assert all(storage.nbytes() == 0 for storage in storages)


@pytest.mark.parametrize("name", ["sd15", "flux1-dev", "z-image"])
def test_each_block_is_transferred_once_in_each_direction(name):
    """The order of execution is learned: no transfer is in vain from the second step on."""
    placed = PlacedNetwork(name, MemorySettings(stream=1.0))
    ring, timestep = placed.placement.ring, two_timesteps(placed.family)[:1]
    counts = []
    for _ in range(4):
        before = ring.transfers
        placed.predict(timestep).square().mean().backward()
        counts.append(ring.transfers - before)
    # the last two of the forward pass are still there when the backward pass begins, and so on
    assert counts[2] == counts[3] == 2 * (len(ring.blocks) - 2)


@pytest.mark.parametrize("name", ["sd15", "sd35", "wan"])
def test_streamed_weights_stay_readable_and_keep_their_values(name):
    placed = PlacedNetwork(name, MemorySettings(stream=0.7))
    placed.numbers()
    expected = dict(PlacedNetwork(name).network.named_parameters())
    for key, parameter in placed.network.named_parameters():
        assert torch.equal(parameter, expected[key]), key


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", ["flux1-dev", "sdxl"])
def test_a_network_without_memory_is_placed_and_its_bytes_are_counted(name, share):
    """On the meta device: what is on the device is what is not streamed, and the ring."""
    network = tiny.build(name).components[PlacedNetwork(name).family.components.denoiser].to("meta")
    total = tensor_places.frozen_bytes(network)
    sizes = blocks.block_bytes(network)
    chosen = [block.name for block in blocks.spread_blocks(blocks.repeated_blocks(network), share)]
    streamed = sum(sizes[name] for name in chosen)
    assert abs(streamed - share * sum(sizes.values())) <= max(sizes.values())
    placement.place(network, MemorySettings(stream=share), torch.device("meta"))
    on_device = placement.placement_of(network).device_bytes(network)
    ring = sum(sorted((sizes[name] for name in chosen), reverse=True)[:2])
    # each tensor of the ring begins at a multiple of 256 bytes
    assert total - streamed + ring <= on_device <= total - streamed + ring + 2 * 256 * 60


@pytest.mark.parametrize("name", ["sd35", "flux1-dev"])
def test_activations_shrink_with_the_share_of_recomputed_blocks(name):
    counts = []
    for share in (0.0, 0.5, 1.0):
        placed = PlacedNetwork(name, MemorySettings(gradient_checkpointing=share))
        timestep = two_timesteps(placed.family)[:1]
        counts.append(
            memory.activation_bytes(placed.network, lambda p=placed, t=timestep: p.predict(t).square().sum())
        )
    assert counts[0] > counts[1] > counts[2] > 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_activations_in_host_memory_are_not_counted_on_the_device(share):
    counts = []
    for offloaded in (False, True):
        settings = MemorySettings(gradient_checkpointing=share, offload_activations=offloaded, stream=0.5)
        placed = PlacedNetwork("flux1-dev", settings)
        timestep = two_timesteps(placed.family)[:1]
        counts.append(
            memory.activation_bytes(placed.network, lambda p=placed, t=timestep: p.predict(t).square().sum())
        )
        plain = plain_numbers("flux1-dev")
        assert torch.equal(
            placed.predict(timestep).detach(), plain[0]
        )  # after counting it computes as before
    assert counts[1] < 0.6 * counts[0]


def test_a_tensor_that_several_blocks_save_is_copied_once():
    placed = PlacedNetwork("flux1-dev", MemorySettings(gradient_checkpointing=1.0, offload_activations=True))
    prediction = placed.predict(two_timesteps(placed.family)[:1])
    saved = sum(copy.nbytes for copy in placed.placement.offload.live_copies())
    assert placed.placement.offload.copied_bytes == saved > 0
    prediction.square().mean().backward()
    del prediction
    assert not placed.placement.offload.live_copies()  # nothing outlives the graph


def test_modulation_layers_learn_which_of_them_share_a_vector():
    placed = PlacedNetwork("flux1-dev", MemorySettings(offload_modulation=True))
    placed.numbers()
    modulation = placed.placement.modulation
    (leader,) = modulation.leaders
    assert len(leader.followers) == len(modulation_layers(placed.network)) - 1 == 3


def test_modulation_that_sees_another_vector_than_before_is_an_error():
    layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)]).requires_grad_(False)
    HostModulation(layers, torch.device("cpu"))
    first, second = torch.ones(1, 4), torch.zeros(1, 4)
    for _ in range(2):  # the same vector in both: learned
        assert all(
            torch.equal(layer(first), nn.functional.linear(first, layer.weight, layer.bias))
            for layer in layers
        )
    layers[0](first), layers[1](second)
    with pytest.raises(ConfigError, match="different ones"):
        layers[0](first)


@pytest.mark.parametrize("name", ["sd15", "wan"])
def test_a_network_without_modulation_layers_refuses_to_offload_them(name):
    with pytest.raises(ConfigError, match="no modulation layers") as caught:
        PlacedNetwork(name, MemorySettings(offload_modulation=True))
    assert "memory.offload_modulation=false" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (MemorySettings(), None),
        (MemorySettings(gradient_checkpointing=1.0, quantize="nf4"), None),
        (MemorySettings(stream=0.5), "memory.stream:"),
        (
            MemorySettings(offload_activations=True, offload_modulation=True),
            "offload_activations, memory.offload_m",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["cpu", "mps", "cuda"])
def test_a_setting_that_saves_nothing_on_a_device_is_named(settings, words, kind):
    note = placement.shared_memory_note(settings, torch.device(kind))
    assert (note is None) == (words is None or kind == "cuda")
    assert note is None or words in note
