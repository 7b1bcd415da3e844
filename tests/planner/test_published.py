"""Published models: their stored counts, the table of the README, and what devices can train."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from lorakit.config import recipe
from lorakit.config.builtin_recipes import builtin_recipes
from lorakit.models.families.published_models import PUBLISHED_MODELS, published_model
from lorakit.models.memory import MemorySettings
from lorakit.planner import outlook, table
from lorakit.planner.choice import evaluate
from lorakit.planner.demand import RunDemand
from lorakit.planner.machine import GIB, machine_with_memory
from lorakit.planner.network_count import in_precision
from lorakit.planner.published import count_model, stored_counts
from lorakit.planner.weights import count_weights
from tests import tiny

README = Path(__file__).parents[2] / "README.md"
ROWS = {"sd35": None, "flux2-klein-9b": None}  # networks that no row of tests/tiny has
MODELS = {model.key: model for model in PUBLISHED_MODELS}


@pytest.mark.parametrize("key", MODELS)
def test_the_stored_counts_are_those_of_the_published_network(key):
    model, count = MODELS[key], stored_counts()[key]
    whole = count_weights(model.build(), "")
    assert count.frozen() == whole.total
    assert sum(p.number * p.weights.quantizable for p in count.parts) == whole.quantizable
    if ROWS.get(key, key):
        full = tiny.ROWS[key].full
        with torch.device("meta"):
            published = getattr(diffusers, full.class_name)(**full.config)
        assert whole.total == sum(p.numel() for p in published.parameters())
        assert f"{count.trained / 1e6:.1f}" == f"{full.millions_of_parameters:.1f}"
    if key in builtin_recipes():
        loaded = recipe.load_recipe(key)
        assert loaded.resolution == model.resolution
        assert published_model(loaded.base) is model


def test_a_model_that_is_counted_again_has_the_stored_counts():
    again, stored = count_model(MODELS["sd15"]), stored_counts()["sd15"]
    assert again == stored


# L and A of performance figures that were counted by hand: forward operations of linear layers and
# convolutions, and of attention, in 10^12
@pytest.mark.parametrize(
    ("key", "linear", "attention"),
    [
        ("sd15", 0.68, 0.13),
        ("sdxl", 5.98, 0.78),
        ("flux1-dev", 59.5, 14.9),
        ("flux2-klein-9b", 64.4, 11.1),
    ],
)
def test_operations_are_those_counted_by_hand(key, linear, attention):
    parts = stored_counts()[key].parts
    forward = [(part.number, part.passes.forward) for part in parts]
    products = sum(number * (work.linear + work.convolution) for number, work in forward)
    assert products / 1e12 == pytest.approx(linear, rel=0.02)
    attended = sum(number * work.attention for number, work in forward)
    assert attended / 1e12 == pytest.approx(attention, rel=0.03, abs=0.005)
    backward = sum(part.number * part.passes.backward.attention for part in parts)
    assert backward == pytest.approx(2.5 * attended, rel=0.03)


def test_the_readme_has_the_table_of_plans_that_fit():
    lines = table.table_lines()
    assert "\n".join(lines) in README.read_text(encoding="utf-8")
    assert len(lines) == 2 + 12
    assert not any("no:" in line for line in lines)


@pytest.mark.parametrize("gib", table.CARD_GIB)
@pytest.mark.parametrize("key", MODELS)
def test_each_model_has_a_plan_that_fits_by_its_own_count(key, gib):
    machine = machine_with_memory(gib)
    best = table.plan_model(key, machine).best
    assert best.footprint.total <= machine.usable_bytes < gib * GIB
    again = evaluate(RunDemand(stored_counts()[key]), best.settings, machine, 1)
    assert again.footprint == best.footprint


@pytest.mark.parametrize(("kind", "gib"), [("cuda", 8), ("cuda", 24), ("mps", 24), ("cpu", 32)])
def test_a_device_is_told_which_models_fit(kind, gib):
    dtype = torch.float32 if kind == "cpu" else torch.bfloat16
    models = outlook.training_outlook(kind, gib * GIB, 64 * GIB, dtype, 50.0 if kind != "cpu" else 0.1)
    assert len(models) == 12
    for one in models:
        assert one.choice.best.footprint.total < gib * GIB or not one.fits
        assert one.is_practical <= one.fits
        if kind in ("cpu", "mps"):  # nothing to stream to
            assert one.choice.best.settings.stream == 0
    assert any(one.is_practical for one in models) == (kind != "cpu")


def test_without_a_measured_speed_a_cpu_is_not_called_practical():
    models = outlook.training_outlook("cpu", 512 * GIB, 512 * GIB, torch.float32, None)
    assert not any(one.is_practical for one in models)
    assert all(one.step_seconds is None for one in models)


def test_float32_doubles_weights_and_activations():
    half = RunDemand(stored_counts()["sd15"])
    full = RunDemand(in_precision(half.network, 4))
    machine = machine_with_memory(24)
    small, large = (evaluate(d, MemorySettings(), machine, 1).footprint for d in (half, full))
    assert large.weights == 2 * small.weights
    assert large.activations == pytest.approx(2 * small.activations, rel=1e-6)
