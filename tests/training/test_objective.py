"""The objectives against the papers' formulas and diffusers' own schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from lorakit.config.recipe import ObjectiveConfig
from lorakit.core.errors import ConfigError
from lorakit.training.objective import Objective, objective_from_scheduler

LATENTS = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1))
U = (torch.arange(64) + 0.5) / 64


def ddpm(scheduler: DDPMScheduler | DDIMScheduler, **config: object) -> Objective:
    alphas_cumprod = scheduler.alphas_cumprod
    return objective_from_scheduler("ddpm", scheduler.config, ObjectiveConfig(**config), alphas_cumprod)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddpm_equals_the_schedulers_own(prediction, zero_snr):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, rescale_betas_zero_snr=zero_snr
    )
    objective = ddpm(scheduler)
    noised = objective.add_noise(LATENTS, NOISE, U)
    t = noised.timesteps
    assert torch.equal(t, (U * 1000).long())
    assert torch.allclose(noised.noisy_latents, scheduler.add_noise(LATENTS, NOISE, t), atol=1e-5)
    expected = {
        "epsilon": NOISE,
        "v_prediction": scheduler.get_velocity(LATENTS, NOISE, t)
        if hasattr(scheduler, "get_velocity")
        else None,
        "sample": LATENTS,
    }[prediction]
    assert torch.allclose(noised.target, expected, atol=1e-5)


def test_ddpm_covers_every_timestep_evenly_for_any_number_of_them():
    scheduler = DDPMScheduler(num_train_timesteps=1100)
    objective = ddpm(scheduler)
    u = (torch.arange(1100) + 0.5) / 1100
    x = torch.zeros(1100, 1)
    assert objective.add_noise(x, x, u).timesteps.tolist() == list(range(1100))
    assert objective.add_noise(x[:1], x[:1], torch.tensor([0.99999999])).timesteps.tolist() == [1099]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_the_schedulers_own(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    objective = objective_from_scheduler("flow", scheduler.config, ObjectiveConfig(timesteps="uniform"))
    noised = objective.add_noise(LATENTS, NOISE, U)
    assert torch.allclose(noised.target, NOISE - LATENTS)
    # the scheduler's grid is shift-mapped as ours is: its k-th noise level is that of u = 1 - k/1000
    assert torch.allclose(scheduler.sigmas[0:1], torch.tensor([1.0]))
    u = torch.tensor([0.25])
    ours = objective.add_noise(LATENTS[:1], NOISE[:1], u).timesteps / 1000
    assert ours.item() == pytest.approx(scheduler.sigmas[750].item(), abs=2e-3)
    sigma = (noised.timesteps / 1000).view(-1, 1, 1, 1)
    assert torch.allclose(noised.noisy_latents, (1 - sigma) * LATENTS + sigma * NOISE, atol=1e-6)


def test_logit_normal_timesteps_have_the_papers_distribution():
    scheduler = FlowMatchEulerDiscreteScheduler()
    objective = objective_from_scheduler("flow", scheduler.config, ObjectiveConfig())
    u = (torch.arange(20000) + 0.5) / 20000
    x = torch.zeros(20000, 1)
    logits = torch.logit(objective.add_noise(x, x, u).timesteps.double() / 1000)
    assert logits.mean().item() == pytest.approx(0, abs=1e-3)
    assert logits.std().item() == pytest.approx(1, abs=1e-3)


def test_a_dynamic_shift_is_for_inference_only():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    assert objective_from_scheduler("flow", scheduler.config, ObjectiveConfig()).shift == 1.0
    assert objective_from_scheduler("flow", scheduler.config, ObjectiveConfig(shift=2.0)).shift == 2.0


def test_a_flow_setting_on_a_ddpm_base_is_refused():
    scheduler = DDPMScheduler()
    with pytest.raises(ConfigError, match="ddpm"):
        ddpm(scheduler, shift=3.0)


def test_ddpm_timesteps_can_be_logit_normal():
    scheduler = DDPMScheduler()
    objective = ddpm(scheduler, timesteps="logit_normal")
    u = (torch.arange(20000) + 0.5) / 20000
    x = torch.zeros(20000, 1)
    times = objective.add_noise(x, x, u).timesteps.double() + 0.5
    assert torch.logit(times / 1000).std().item() == pytest.approx(1, abs=1e-2)


def test_loss_is_the_mean_square_per_sample_in_float32():
    objective = objective_from_scheduler("flow", {}, ObjectiveConfig())
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    assert objective.loss(a, torch.zeros(2, 2), U[:2]).tolist() == [2.5, 12.5]
