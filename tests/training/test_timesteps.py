"""Distributions of timesteps against the papers' formulas, and the pipelines' own shift by resolution."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from lorakit.config import recipe
from lorakit.config.recipe import ObjectiveConfig
from lorakit.core import rng
from lorakit.core.errors import ConfigError
from lorakit.training import timesteps
from lorakit.training.objective import objective_from_scheduler
from tests import tiny
from tests.models.families.common import CAPTIONS, family_of, noise_for

U = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


@pytest.mark.parametrize("scale", [None, -1.0, 0.0, 0.8, 1.75])
def test_mode_is_the_papers_function(scale):
    config = ObjectiveConfig(timesteps="mode", mode_scale=scale)
    s, v = (1.29 if scale is None else scale), 1 - U  # the paper's decreases, ours increases
    paper = 1 - v - s * (torch.cos(math.pi / 2 * v) ** 2 - 1 + v)
    fractions = timesteps.timestep_distribution(config, "uniform")(U)
    assert torch.allclose(fractions, paper, atol=1e-12)
    assert (fractions.diff() > 0).all()
    assert fractions.min() >= 0
    assert fractions.max() <= 1


@pytest.mark.parametrize(("mean", "std"), [(None, None), (0.5, 0.6), (-1.0, 2.0)])
def test_logit_normal_has_its_mean_and_deviation(mean, std):
    config = ObjectiveConfig(timesteps="logit_normal", logit_mean=mean, logit_std=std)
    logits = torch.logit(timesteps.timestep_distribution(config, "uniform")(U))
    assert logits.mean().item() == pytest.approx(mean or 0, abs=1e-3)
    assert logits.std().item() == pytest.approx(std or 1, rel=1e-3)


def test_stratified_uniforms_have_one_in_each_part_of_every_step_by_position_alone():
    batch, orders = 8, set()
    for step in range(20):
        positions = range(step * batch, (step + 1) * batch)
        uniforms = timesteps.sample_uniforms(positions, 5, "time", batch, stratified=True)
        strata = [int(batch * number) for number in uniforms]
        assert sorted(strata) == list(range(batch))
        orders.add(tuple(strata))
        # alone, or in another order: the same
        assert [
            timesteps.sample_uniforms([p], 5, "time", batch, stratified=True)[0] for p in positions
        ] == uniforms
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
    objective = objective_from_scheduler(
        "flow", scheduler.config, ObjectiveConfig(shift="resolution", timesteps="uniform"), None, 2
    )
    x = torch.zeros(5, 4, side, side, dtype=torch.float64)
    u = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.99])
    mu = calculate_shift(side * side // 4, base_shift=0.4, max_shift=1.3)
    expected = 1000 * scheduler.time_shift(mu, 1.0, u.double())
    assert torch.allclose(objective.add_noise(x, x, u).timesteps.double(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["flux1-dev", "qwen-image-2.1", "z-image"])
def test_tokens_are_counted_as_the_pipeline_counts_them(name, monkeypatch):
    """The shift that a call of the pipeline gives to its scheduler, at the same resolution."""
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
        pipe(
            CAPTIONS[:1],
            latents=row.latents_argument(pipe, noise),
            **settings,
            **row.call_arguments,
            **row.guidance_off,
        )
    rule = timesteps.resolution_shift(scheduler.config, family.shift_patch_size)
    assert math.log(rule(noise.shape)) == pytest.approx(seen[0], abs=1e-9)


@pytest.mark.parametrize(
    ("scheduler_config", "patch_size", "reason"),
    [({"shift": 3.0}, 2, r"no shift by resolution: its shift is 3\.0"), (CONFIG, None, "another rule")],
)
def test_a_base_without_such_a_shift_refuses_it(scheduler_config, patch_size, reason):
    with pytest.raises(ConfigError, match=reason):
        objective_from_scheduler(
            "flow", scheduler_config, ObjectiveConfig(shift="resolution"), None, patch_size
        )


def test_settings_that_have_no_effect_are_refused_with_both_names():
    scheduler = DDPMScheduler()
    with pytest.raises(
        ConfigError, match=r"logit_std is for logit_normal timesteps.*the base's own are uniform"
    ):
        objective_from_scheduler(
            "ddpm", scheduler.config, ObjectiveConfig(logit_std=2.0), scheduler.alphas_cumprod
        )
    assert objective_from_scheduler(
        "flow", {}, ObjectiveConfig(logit_std=2.0)
    ).timestep_distribution == timesteps.LogitNormalDistribution(0.0, 2.0)
    base = {"base": "tiny-dit", "dataset": "d", "out": "o"}
    for objective, reason in (
        ({"mode_scale": 1.0}, "mode_scale is for timesteps: mode, not auto"),
        ({"logit_mean": 1.0, "timesteps": "uniform"}, "logit_mean is for timesteps: logit_normal, not unif"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma is for weighting: min_snr, not none"),
        ({"timesteps": "mode", "mode_scale": 2.0}, "mode_scale: 2.0 is too large"),
        ({"prior_loss_weight": 2.0}, "prior_loss_weight needs `class_images`"),
        ({"output_preservation": 1.0}, "set `trigger` and `class_noun`"),
        ({"masked_loss": {"gray_unmasked": True, "unmasked_weight": 0.5}}, "gray_unmasked paints"),
        ({"masked_loss": {"unmasked_weigh": 0.5}}, "did you mean 'unmasked_weight'"),
        ({"weighting": "min-snr"}, "did you mean 'min_snr'"),
        ({"noise_offset": -0.1}, "noise_offset"),
    ):
        with pytest.raises(ConfigError, match=reason):
            recipe.parse_recipe(base | {"objective": objective})
