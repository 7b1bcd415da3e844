"""Loss weights, the pseudo-Huber penalty and masked means, each against its paper's formula computed
in another way."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3

from lorakit.config.recipe import ObjectiveConfig
from lorakit.core.errors import ConfigError
from lorakit.training import objective
from lorakit.training.objective import objective_from_scheduler

KINDS = ["epsilon", "v_prediction", "sample", "flow"]
X = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
N = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
ERROR = 0.1 * torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(2)).double()
U = (torch.arange(32) + 0.5) / 32


def build(kind: str, config: ObjectiveConfig, **options) -> objective.Objective:
    if kind == "flow":
        return objective_from_scheduler("flow", {}, config.model_copy(update={"timesteps": "uniform"}))
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind, **options)
    return objective_from_scheduler("ddpm", scheduler.config, config, scheduler.alphas_cumprod)


def alpha_and_sigma(built: objective.Objective, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(built, objective.FlowMatching):
        return 1 - t / 1000, t / 1000
    alpha_bar = built.alphas_cumprod[t]
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def clean(kind: str, noisy, prediction, alpha, sigma):
    """The clean image that a prediction implies, by inverting x_t = alpha x + sigma n."""
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in (alpha, sigma))
    return {
        "epsilon": lambda: (noisy - sigma * prediction) / alpha,
        "v_prediction": lambda: alpha * noisy - sigma * prediction,
        "sample": lambda: prediction,
        "flow": lambda: noisy - sigma * prediction,
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("config", "paper"),
    [
        (ObjectiveConfig(weighting="min_snr"), lambda snr: snr.clamp(max=5)),
        (ObjectiveConfig(weighting="min_snr", min_snr_gamma=1.0), lambda snr: snr.clamp(max=1)),
        (ObjectiveConfig(weighting="debiased"), lambda snr: snr.sqrt()),
    ],
    ids=["min_snr", "gamma 1", "debiased"],
)
def test_weights_are_the_papers_on_the_clean_image_that_a_prediction_implies(kind, config, paper):
    """min(SNR, gamma), and sqrt(SNR) = SNR / sqrt(SNR), are weights of the clean image's error."""
    built = build(kind, config)
    noised = built.add_noise(X, N, U)
    t, target = noised.timesteps, noised.target
    alpha, sigma = alpha_and_sigma(built, t)
    implied = clean(kind, noised.noisy_latents, target + ERROR, alpha, sigma)
    expected = paper((alpha / sigma) ** 2) * (implied - X).square().flatten(1).mean(1)
    assert torch.allclose(built.loss(target + ERROR, target, t).double(), expected, rtol=2e-3)


def test_min_snr_and_debiased_of_the_noise_are_as_published():
    for config, paper in (
        (ObjectiveConfig(weighting="min_snr"), lambda snr: snr.clamp(max=5) / snr),
        (ObjectiveConfig(weighting="debiased"), lambda snr: 1 / snr.sqrt()),
    ):
        built = build("epsilon", config)
        t = torch.arange(1000)
        alpha_bar = built.alphas_cumprod
        ones = torch.ones(1000, 1)
        weights = built.loss(ones, 0 * ones, t).double()
        assert torch.allclose(weights, paper(alpha_bar / (1 - alpha_bar)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "epsilon"])
@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_zero_terminal_snr_gives_finite_losses(kind, weighting):
    if (kind, weighting) == ("epsilon", "debiased"):
        with pytest.raises(ConfigError, match=r"debiased has no finite weight on this base.*zero terminal"):
            build(kind, ObjectiveConfig(weighting=weighting), rescale_betas_zero_snr=True)
        return
    built = build(kind, ObjectiveConfig(weighting=weighting), rescale_betas_zero_snr=True)
    t = torch.tensor([0, 998, 999])
    assert built.alphas_cumprod[-1] == 0
    prediction = torch.ones(3, 4, requires_grad=True)
    loss = built.loss(prediction, torch.zeros(3, 4), t)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", ["sigma_sqrt", "cosmap"])
def test_flow_weights_are_those_of_the_reference(name):
    built = build("flow", ObjectiveConfig(weighting=name))
    sigma = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    ones = torch.ones(50, 1)
    expected = compute_loss_weighting_for_sd3(name, sigma)
    weights = built.loss(ones, 0 * ones, 1000 * sigma).double()
    assert torch.allclose(weights, expected.double(), rtol=1e-5)
    assert torch.isfinite(built.loss(ones[:1], 0 * ones[:1], torch.zeros(1))).all()  # without any noise
    if name == "cosmap":  # a density over the noise level
        assert torch.trapezoid(weights, sigma).item() == pytest.approx(1, abs=0.01)
    with pytest.raises(ConfigError, match=rf"{name} is for flow matching.*ddpm model \(epsilon\)"):
        build("epsilon", ObjectiveConfig(weighting=name))


@pytest.mark.parametrize(("gamma", "kind"), [(1e-4, "epsilon"), (1e5, "v_prediction"), (1e9, "flow")])
def test_a_gamma_that_changes_nothing_on_the_base_is_refused(gamma, kind):
    with pytest.raises(ConfigError, match=r"changes no weight on this base.*ratio is between"):
        build(kind, ObjectiveConfig(weighting="min_snr", min_snr_gamma=gamma))


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_pseudo_huber_with_its_schedules(kind, schedule):
    c0 = 0.1
    built = build(kind, ObjectiveConfig(huber={"c": c0, "schedule": schedule}))
    noised = built.add_noise(X, N, U)
    t, target = noised.timesteps, noised.target
    alpha, sigma = alpha_and_sigma(built, t)
    fraction = t.double() / 1000
    c = {
        "constant": torch.full((32,), c0).double(),
        "exponential": torch.exp(math.log(c0) * fraction),
        "snr": (1 - c0) / (1 + sigma / alpha) ** 2 + c0,
    }[schedule].view(-1, 1, 1, 1)
    error = 3 * ERROR
    expected = (2 * c * ((error**2 + c**2).sqrt() - c)).flatten(1).mean(1)
    assert torch.allclose(built.loss(target + error, target, t).double(), expected, rtol=1e-4)
    small = built.loss(target + 1e-3 * error, target, t).double()
    assert torch.allclose(small, (1e-3 * error).square().flatten(1).mean(1), rtol=1e-2)


def test_a_mask_weighs_positions_and_normalizes_by_its_area():
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0], mask[1, 0, :, 0] = 1.0, 0.5
    prediction = torch.arange(16.0).view(2, 2, 2, 2)
    zero, t = torch.zeros_like(prediction), torch.zeros(2)
    normal = build("flow", ObjectiveConfig(masked_loss={}))
    assert normal.loss(prediction, zero, t, mask).tolist() == [(0 + 16) / 2, (64 + 100 + 144 + 196) / 4]
    plain = build("flow", ObjectiveConfig(masked_loss={"normalize_area": False}))
    assert plain.loss(prediction, zero, t, mask).tolist() == [16 / 8, 0.5 * (64 + 100 + 144 + 196) / 8]
    assert normal.loss(prediction, zero, t, torch.zeros(2, 1, 2, 2)).tolist() == [0, 0]
    video = prediction[:, :, None].expand(-1, -1, 3, -1, -1)
    assert torch.equal(normal.loss(video, 0 * video, t, mask), normal.loss(prediction, zero, t, mask))


@pytest.mark.parametrize("poison", [1e30, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "config", [{"masked_loss": {}}, {"masked_loss": {"normalize_area": False}, "huber": {}}]
)
def test_values_outside_a_mask_change_no_bit_of_loss_or_gradient(config, poison):
    built = build("flow", ObjectiveConfig(**config))
    mask = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.6).float()
    target, results = X[:4].float(), []
    for values in (target, torch.where(mask > 0, target, poison)):
        prediction = N[:4].float().requires_grad_()
        loss = built.loss(prediction, values, U[:4] * 1000, mask)
        loss.sum().backward()
        results.append((loss.detach(), prediction.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[0][1] * (1 - mask) == 0).all()
    assert (results[0][1] != 0).any()


def test_without_settings_the_loss_is_the_mean_square_bit_for_bit():
    scheduler = DDPMScheduler()
    built = objective_from_scheduler("ddpm", scheduler.config, ObjectiveConfig(), scheduler.alphas_cumprod)
    a, b = X.float(), N.float()
    assert torch.equal(built.loss(a, b, torch.zeros(32)), (a - b).square().flatten(1).mean(1))
