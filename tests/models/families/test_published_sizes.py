"""The table of published models, and what it says about devices."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lorakit.config import recipe
from lorakit.models import families
from lorakit.models.families import published_sizes
from lorakit.models.memory import quantize
from tests import tiny

GIB = 2**30
ROWS = {"sd35": "sd3"}  # recipes whose row of tests/tiny has another name
MODELS = {model.recipe: model for model in published_sizes.PUBLISHED_MODELS}


def full_network(name: str) -> torch.nn.Module:
    full = tiny.ROWS[ROWS.get(name, name)].full
    return getattr(diffusers, full.class_name)(**full.config)


@pytest.mark.parametrize("name", MODELS)
def test_the_sizes_are_those_of_the_published_network(name):
    with torch.device("meta"):
        network = full_network(name)
    quantizable = [m for key, m in network.named_modules() if quantize.is_quantizable(key, m)]
    model = MODELS[name]
    assert model.parameters == pytest.approx(sum(p.numel() for p in network.parameters()) / 1e9, abs=1e-3)
    assert model.quantizable == pytest.approx(sum(m.weight.numel() for m in quantizable) / 1e9, abs=1e-3)
    assert model.resolution == recipe.load_recipe(name).resolution


@pytest.mark.parametrize(("name", "latents"), [("sd15", 64), ("sdxl", 128)])
def test_the_operations_of_a_unet_are_counted(name, latents):
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        network = full_network(name)
        added = (
            {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if name == "sdxl" else None
        )
        image = torch.empty(1, network.config.in_channels, latents, latents)
        text = torch.empty(1, 77, network.config.cross_attention_dim)
        network(image, torch.tensor([5]), encoder_hidden_states=text, added_cond_kwargs=added)
    assert MODELS[name].teraflops == pytest.approx(counter.get_total_flops() / 1e12, rel=0.02)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"sd15", "sdxl"}))
def test_the_operations_of_a_transformer_follow_from_its_parameters_and_tokens(name):
    model = MODELS[name]
    patch = {"sana": 32}.get(name, 16)  # pixels per side of a token
    frames = (17 - 1) // 4 + 1 if name == "wan" else 1
    tokens = (model.resolution // patch) ** 2 * frames
    assert model.teraflops == pytest.approx(2 * model.parameters * tokens / 1000, rel=0.02)


def outlook(kind: str, gib: float, speed: float | None = None, main: float = 64) -> dict:
    dtype = torch.float32 if kind == "cpu" else torch.bfloat16
    found = published_sizes.training_outlook(kind, int(gib * GIB), int(main * GIB), dtype, speed)
    return {one.model.recipe: one for one in found}


@pytest.mark.parametrize(
    ("gib", "full", "nf4", "none"),
    [
        (4, {"sd15"}, {"sdxl"}, {"flux1-dev", "qwen-image"}),
        (8, {"sd15", "sana", "sd35"}, {"sdxl", "flux2-klein", "z-image"}, {"chroma", "flux1-dev"}),
        (12, {"sdxl"}, {"chroma", "flux1-dev"}, {"wan", "qwen-image"}),
        (24, {"z-image"}, {"flux1-dev", "qwen-image", "wan"}, set()),
        (80, {"qwen-image", "wan"}, set(), set()),
    ],
)
def test_a_gpu_is_told_which_models_fit_as_in_the_readme(gib, full, nf4, none):
    found = outlook("cuda", gib, speed=400)
    assert {found[name].quantize for name in full} == {None}
    assert {found[name].quantize for name in nf4} <= {"nf4"}
    assert all(found[name].fits and found[name].is_practical for name in full | nf4)
    assert not any(found[name].fits for name in none)
    assert all("needs" in found[name].shortage and found[name].step_seconds is None for name in none)


@pytest.mark.parametrize(("speed", "seconds"), [(0.1, 16.0), (0.02, 80.0)])
def test_a_cpu_is_told_that_published_models_are_slow(speed, seconds):
    found = outlook("cpu", 32, speed)
    assert found["sd15"].step_seconds == pytest.approx(seconds)
    assert found["sd15"].fits
    assert not any(one.is_practical for one in found.values())


def test_without_a_measured_speed_a_cpu_is_not_called_practical():
    assert not any(one.is_practical for one in outlook("cpu", 512, None, main=512).values())
    assert outlook("cuda", 24)["sdxl"].is_practical


@pytest.mark.parametrize(("main", "fits"), [(16, False), (64, True)])
def test_main_memory_must_hold_the_model_while_it_is_loaded(main, fits):
    found = outlook("cuda", 16, main=main)["flux1-dev"]
    assert found.fits == fits
    assert ("main memory" in (found.shortage or "")) != fits


def test_families_of_the_table_exist():
    names = {family.title for family in families.FAMILIES}
    assert len(MODELS) >= 10
    assert "Stable Diffusion XL" in names
