"""Memory settings that the planner chooses, and cards by their names."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from lorakit.core.errors import ConfigError
from lorakit.models.memory import MemorySettings
from lorakit.planner import cards
from lorakit.planner.choice import FixedSettings, choose, evaluate
from lorakit.planner.demand import RunDemand
from lorakit.planner.machine import GIB, machine_of_card, machine_with_memory
from lorakit.planner.published import stored_counts
from lorakit.planner.step_time import estimate_step

KEYS = ("sdxl", "flux1-dev", "z-image", "qwen-image")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA GeForce RTX 3060", "RTX 3060 12GB"),
        ("rtx3060-12gb", "RTX 3060 12GB"),
        ("3060", "RTX 3060 12GB"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "RTX 3060 Laptop 6GB"),
        ("RTX 4070 Ti SUPER", "RTX 4070 Ti Super 16GB"),
        ("4090", "RTX 4090 24GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H200", "H200 141GB"),
        ("AMD Radeon RX 7900 XTX", "RX 7900 XTX 24GB"),
        ("Intel(R) Arc(TM) A770 Graphics", "Arc A770 16GB"),
        ("T4", "T4 16GB"),
        ("Apple M3 Max", "Apple M3 Max 64GB"),
    ],
)
def test_a_card_is_known_by_its_name_in_any_spelling(name, expected):
    assert cards.find_card(name).name == expected


@pytest.mark.parametrize(("name", "near"), [("RTX 3061", "RTX 3060"), ("H20", "H200"), ("card", "")])
def test_an_unknown_card_gets_the_nearest_name(name, near):
    with pytest.raises(ConfigError) as caught:
        cards.find_card(name)
    assert near in str(caught.value)
    assert "--vram 8GB" in str(caught.value)


def test_every_line_of_the_table_is_plausible_and_found_by_its_own_name():
    for card in cards.all_cards():
        assert cards.find_card(card.name) == card
        assert card.half_tflops >= card.fp32_tflops
        assert 4 <= card.memory_gib <= 200
        assert card.half in ("bf16", "fp16")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("gib", [6, 12, 24, 80])
def test_no_settings_that_fit_are_faster_than_the_chosen_ones(key, gib):
    demand, machine = RunDemand(stored_counts()[key], batch_size=2), machine_with_memory(gib)
    best = choose(demand, machine).best
    assert best.fits
    for share, stream in itertools.product((0.0, 0.5, 1.0), repeat=2):
        for size in (1, 2):
            settings = MemorySettings(stream=stream, gradient_checkpointing=share)
            other = evaluate(demand, settings, machine, size)
            if other.fits and best.settings.quantize is None:
                assert best.step.total <= other.step.total * 1.15


@pytest.mark.parametrize("key", KEYS)
def test_each_setting_lowers_the_footprint_of_a_full_card(key):
    demand = RunDemand(stored_counts()[key])
    machine = machine_with_memory(12)
    plain = evaluate(demand, MemorySettings(), machine, 1).footprint.total
    changes = [{"quantize": kind} for kind in ("int8", "fp8", "nf4")]
    changes += [{"stream": 1.0}, {"gradient_checkpointing": 1.0}, {"offload_activations": True}]
    totals = [evaluate(demand, MemorySettings(**change), machine, 1).footprint.total for change in changes]
    assert all(total < plain for total in totals)
    assert totals[2] < totals[0]  # nf4 is smaller than int8


@pytest.mark.parametrize(
    "fixed",
    [
        FixedSettings(quantize="none"),
        FixedSettings(quantize="nf4", gradient_checkpointing=0.0),
        FixedSettings(stream=0.0, offload_activations=False, offload_modulation=False),
        FixedSettings(gradient_checkpointing=0.75),
    ],
)
def test_what_the_recipe_decides_stays(fixed):
    best = choose(RunDemand(stored_counts()["flux1-dev"]), machine_with_memory(16), fixed).best.settings
    for key, value in vars(fixed).items():
        if value is not None:
            assert getattr(best, key) == (None if value == "none" else value)


def test_an_adapter_that_needs_full_weights_is_not_quantized():
    choice = choose(RunDemand(stored_counts()["qwen-image"]), machine_with_memory(12), quantizations=[None])
    assert choice.best.settings.quantize is None
    assert choice.best.fits


def test_nothing_that_fits_is_said_plainly_with_the_least_that_is_needed():
    machine = replace(machine_with_memory(6), usable_bytes=GIB)
    choice = choose(RunDemand(stored_counts()["qwen-image"]), machine)
    assert not choice.best.fits
    assert choice.reasons[0].startswith("nothing fits: at least ")


def test_streaming_is_free_where_the_tokens_hide_the_transfer():
    machine = machine_of_card(cards.find_card("RTX 3060"))
    demand = RunDemand(stored_counts()["flux1-dev"])
    plain = estimate_step(demand, MemorySettings(quantize="nf4"), machine)
    streamed = estimate_step(demand, MemorySettings(quantize="nf4", stream=1.0), machine)
    assert streamed.total == plain.total
    slow = replace(machine, link=machine.link / 100)
    assert estimate_step(demand, MemorySettings(quantize="nf4", stream=1.0), slow).total > plain.total
