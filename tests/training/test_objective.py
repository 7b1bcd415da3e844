"""The objectives against the papers' formulas and diffusers' own schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from lorakit.config.recipe import ObjectiveConfig as Settings
from lorakit.core.errors import ConfigError
from lorakit.training.objective import objective_from_scheduler

LATENTS = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1))
U = (torch.arange(64) + 0.5) / 64


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddpm_equals_the_schedulers_own(prediction, zero_snr):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, rescale_betas_zero_snr=zero_snr
    )
    made = objective_from_scheduler("ddpm", scheduler.config, Settings(), scheduler.alphas_cumprod)
    noisy, t, target = made.noise(LATENTS, NOISE, U)
    assert torch.equal(t, (U * 1000).long())
    assert torch.allclose(noisy, scheduler.add_noise(LATENTS, NOISE, t), atol=1e-5)
    expected = {
        "epsilon": NOISE,
        "v_prediction": scheduler.get_velocity(LATENTS, NOISE, t)
        if hasattr(scheduler, "get_velocity")
        else None,
        "sample": LATENTS,
    }[prediction]
    assert torch.allclose(target, expected, atol=1e-5)


def test_ddpm_covers_every_time_evenly_including_other_counts():
    scheduler = DDPMScheduler(num_train_timesteps=1100)
    made = objective_from_scheduler("ddpm", scheduler.config, Settings(), scheduler.alphas_cumprod)
    u = (torch.arange(1100) + 0.5) / 1100
    x = torch.zeros(1100, 1)
    assert made.noise(x, x, u)[1].tolist() == list(range(1100))
    assert made.noise(x[:1], x[:1], torch.tensor([0.99999999]))[1].tolist() == [1099]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_the_schedulers_own(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    made = objective_from_scheduler("flow", scheduler.config, Settings(timesteps="uniform"))
    noisy, t, target = made.noise(LATENTS, NOISE, U)
    assert torch.allclose(target, NOISE - LATENTS)
    # the scheduler's grid is shift-mapped as ours is: its k-th noise level is that of u = 1 - k/1000
    assert torch.allclose(scheduler.sigmas[0:1], torch.tensor([1.0]))
    u = torch.tensor([0.25])
    ours = made.noise(LATENTS[:1], NOISE[:1], u)[1] / 1000
    assert ours.item() == pytest.approx(scheduler.sigmas[750].item(), abs=2e-3)
    sigma = (t / 1000).view(-1, 1, 1, 1)
    assert torch.allclose(noisy, (1 - sigma) * LATENTS + sigma * NOISE, atol=1e-6)


def test_logit_normal_times_have_the_papers_distribution():
    scheduler = FlowMatchEulerDiscreteScheduler()
    made = objective_from_scheduler("flow", scheduler.config, Settings())
    u = (torch.arange(20000) + 0.5) / 20000
    x = torch.zeros(20000, 1)
    logits = torch.logit(made.noise(x, x, u)[1].double() / 1000)
    assert logits.mean().item() == pytest.approx(0, abs=1e-3)
    assert logits.std().item() == pytest.approx(1, abs=1e-3)


def test_a_dynamic_shift_belongs_to_inference_only():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    assert objective_from_scheduler("flow", scheduler.config, Settings()).shift == 1.0
    assert objective_from_scheduler("flow", scheduler.config, Settings(shift=2.0)).shift == 2.0


def test_a_flow_setting_on_a_ddpm_base_is_refused():
    scheduler = DDPMScheduler()
    with pytest.raises(ConfigError, match="ddpm"):
        objective_from_scheduler("ddpm", scheduler.config, Settings(shift=3.0), scheduler.alphas_cumprod)


def test_ddpm_times_can_be_gathered_in_the_middle():
    scheduler = DDPMScheduler()
    settings = Settings(timesteps="logit-normal")
    made = objective_from_scheduler("ddpm", scheduler.config, settings, scheduler.alphas_cumprod)
    u = (torch.arange(20000) + 0.5) / 20000
    x = torch.zeros(20000, 1)
    times = made.noise(x, x, u)[1].double() + 0.5
    assert torch.logit(times / 1000).std().item() == pytest.approx(1, abs=1e-2)


def test_loss_is_the_mean_square_per_sample_in_float32():
    made = objective_from_scheduler("flow", {}, Settings())
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    assert made.loss(a, torch.zeros(2, 2), U[:2]).tolist() == [2.5, 12.5]
