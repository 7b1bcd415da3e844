"""Samplers of noise levels against the papers' formulas, and the pipelines' own shift by resolution."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from lorakit.config import recipe
from lorakit.config.recipe import ObjectiveConfig as Settings
from lorakit.core import rng
from lorakit.core.errors import ConfigError
from lorakit.training import timesteps
from lorakit.training.objective import objective_from_scheduler
from tests import tiny
from tests.models.families.common import CAPTIONS, family_of, noise_for

U = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


@pytest.mark.parametrize("scale", [None, -1.0, 0.0, 0.8, 1.75])
def test_mode_is_the_papers_function(scale):
    settings = Settings(timesteps="mode", mode_scale=scale)
    s, v = (1.29 if scale is None else scale), 1 - U  # the paper's falls, ours grows
    paper = 1 - v - s * (torch.cos(math.pi / 2 * v) ** 2 - 1 + v)
    found = timesteps.timestep_distribution(settings, "uniform")(U)
    assert torch.allclose(found, paper, atol=1e-12)
    assert (found.diff() > 0).all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(("mean", "std"), [(None, None), (0.5, 0.6), (-1.0, 2.0)])
def test_logit_normal_has_its_mean_and_deviation(mean, std):
    settings = Settings(timesteps="logit-normal", logit_mean=mean, logit_std=std)
    logits = torch.logit(timesteps.timestep_distribution(settings, "uniform")(U))
    assert logits.mean().item() == pytest.approx(mean or 0, abs=1e-3)
    assert logits.std().item() == pytest.approx(std or 1, rel=1e-3)


def test_stratified_times_have_one_in_each_part_of_every_step_by_position_alone():
    batch, orders = 8, set()
    for step in range(20):
        positions = range(step * batch, (step + 1) * batch)
        drawn = timesteps.sample_uniforms(positions, 5, "time", batch, stratified=True)
        strata = [int(batch * number) for number in drawn]
        assert sorted(strata) == list(range(batch))
        orders.add(tuple(strata))
        # alone, or in another order: the same
        assert [
            timesteps.sample_uniforms([p], 5, "time", batch, stratified=True)[0] for p in positions
        ] == drawn
    assert len(orders) == 20
    plain = timesteps.sample_uniforms(range(8), 5, "time", batch, stratified=False)
    assert plain == [rng.keyed_uniform(5, "time", position) for position in range(8)]
    numbers = timesteps.sample_uniforms(range(8000), 5, "time", batch, stratified=True)
    within = torch.tensor(numbers, dtype=torch.float64) * batch % 1
    assert within.mean().item() == pytest.approx(0.5, abs=0.01)


CONFIG = {"use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 1.3}


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("side", [16, 64, 128])
def test_the_shift_by_resolution_is_the_pipelines(kind, side):
    scheduler = FlowMatchEulerDiscreteScheduler(**CONFIG, time_shift_type=kind)
    goal = objective_from_scheduler(
        "flow", scheduler.config, Settings(shift="resolution", timesteps="uniform"), None, 2
    )
    x = torch.zeros(5, 4, side, side, dtype=torch.float64)
    u = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.99])
    mu = calculate_shift(side * side // 4, base_shift=0.4, max_shift=1.3)
    expected = 1000 * scheduler.time_shift(mu, 1.0, u.double())
    assert torch.allclose(goal.noise(x, x, u)[1], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["flux1-dev", "qwen-image-2.1", "z-image"])
def test_tokens_are_counted_as_the_pipeline_counts_them(name, monkeypatch):
    """The shift that a real run hands to its scheduler, at the same resolution."""
    family, pipe, row = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name]
    scheduler = FlowMatchEulerDiscreteScheduler(**CONFIG)
    seen: list[float] = []

    class Stop(Exception):
        pass

    def recorded(*arguments, mu, **options):
        seen.append(mu)
        raise Stop

    monkeypatch.setattr(scheduler, "set_timesteps", recorded)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    monkeypatch.setattr(sys.modules[type(pipe).__module__], "retrieve_timesteps", recorded)
    noise = noise_for(name, row.sizes[0])
    settings = {"width": row.sizes[0][0], "height": row.sizes[0][1], "num_inference_steps": 1}
    with pytest.raises(Stop):
        pipe(CAPTIONS[:1], latents=row.given(pipe, noise), **settings, **row.call, **row.off)
    rule = timesteps.resolution_shift(scheduler.config, family.token_side)
    assert math.log(rule(noise.shape)) == pytest.approx(seen[0], abs=1e-9)


@pytest.mark.parametrize(
    ("config", "patch", "reason"),
    [({"shift": 3.0}, 2, r"no shift by resolution: its shift is 3\.0"), (CONFIG, None, "not known to do so")],
)
def test_a_base_without_such_a_shift_refuses_it(config, patch, reason):
    with pytest.raises(ConfigError, match=reason):
        objective_from_scheduler("flow", config, Settings(shift="resolution"), None, patch)


def test_settings_that_have_no_effect_are_refused_with_both_names():
    scheduler = DDPMScheduler()
    with pytest.raises(ConfigError, match=r"logit_std is for logit-normal.*the base's own are uniform"):
        objective_from_scheduler("ddpm", scheduler.config, Settings(logit_std=2.0), scheduler.alphas_cumprod)
    assert objective_from_scheduler(
        "flow", {}, Settings(logit_std=2.0)
    ).spread == timesteps.LogitNormalDistribution(0.0, 2.0)
    base = {"base": "tiny-dit", "dataset": "d", "out": "o"}
    for given, reason in (
        ({"mode_scale": 1.0}, "mode_scale is for timesteps: mode, not auto"),
        ({"logit_mean": 1.0, "timesteps": "uniform"}, "logit_mean is for timesteps: logit-normal, not unif"),
        ({"gamma": 5.0}, "gamma is for weighting: min-snr, not none"),
        ({"timesteps": "mode", "mode_scale": 2.0}, "less than or equal to"),
        ({"class_weight": 2.0}, "class_weight weighs `class_images`, and there are none"),
        ({"preserve": 1.0}, "give `trigger` and `class_noun`"),
        ({"mask": {"hide": True, "outside": 0.5}}, "hide paints the outside grey"),
        ({"mask": {"outsid": 0.5}}, "did you mean 'outside'"),
        ({"weighting": "min_snr"}, "did you mean 'min-snr'"),
        ({"noise_offset": -0.1}, "noise_offset"),
    ):
        with pytest.raises(ConfigError, match=reason):
            recipe.parse_recipe(base | {"objective": given})
