"""Loss weights, the pseudo-Huber penalty and masked means, each against its paper's formula worked out
another way."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3

from lorakit.config.recipe import ObjectiveConfig as Settings
from lorakit.core.errors import ConfigError
from lorakit.training import objective
from lorakit.training.objective import objective_from_scheduler

KINDS = ["epsilon", "v_prediction", "sample", "flow"]
X = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
N = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
ERROR = 0.1 * torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(2)).double()
U = (torch.arange(32) + 0.5) / 32


def made(kind: str, settings: Settings, **options) -> objective.Objective:
    if kind == "flow":
        return objective_from_scheduler("flow", {}, settings.model_copy(update={"timesteps": "uniform"}))
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind, **options)
    return objective_from_scheduler("ddpm", scheduler.config, settings, scheduler.alphas_cumprod)


def signal_and_spread(goal: objective.Objective, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(goal, objective.FlowMatching):
        return 1 - t / 1000, t / 1000
    alpha_bar = goal.alphas_cumprod[t]
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def clean(kind: str, noisy, prediction, signal, spread):
    """The picture that a prediction means, by inverting x_t = signal x + spread n."""
    signal, spread = (part.view(-1, 1, 1, 1) for part in (signal, spread))
    return {
        "epsilon": lambda: (noisy - spread * prediction) / signal,
        "v_prediction": lambda: signal * noisy - spread * prediction,
        "sample": lambda: prediction,
        "flow": lambda: noisy - spread * prediction,
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "paper"),
    [
        (Settings(weighting="min-snr"), lambda snr: snr.clamp(max=5)),
        (Settings(weighting="min-snr", gamma=1.0), lambda snr: snr.clamp(max=1)),
        (Settings(weighting="debiased"), lambda snr: snr.sqrt()),
    ],
    ids=["min-snr", "gamma 1", "debiased"],
)
def test_weights_are_the_papers_on_the_picture_that_a_prediction_means(kind, settings, paper):
    """min(SNR, gamma), and sqrt(SNR) = SNR / sqrt(SNR), are weights of the clean picture's error."""
    goal = made(kind, settings)
    noisy, t, target = goal.noise(X, N, U)
    signal, spread = signal_and_spread(goal, t)
    meant = clean(kind, noisy, target + ERROR, signal, spread)
    expected = paper((signal / spread) ** 2) * (meant - X).square().flatten(1).mean(1)
    assert torch.allclose(goal.loss(target + ERROR, target, t).double(), expected, rtol=2e-3)


def test_min_snr_and_debiased_of_the_noise_are_as_published():
    for settings, paper in (
        (Settings(weighting="min-snr"), lambda snr: snr.clamp(max=5) / snr),
        (Settings(weighting="debiased"), lambda snr: 1 / snr.sqrt()),
    ):
        goal = made("epsilon", settings)
        t = torch.arange(1000)
        alpha_bar = goal.alphas_cumprod
        ones = torch.ones(1000, 1)
        weights = goal.loss(ones, 0 * ones, t).double()
        assert torch.allclose(weights, paper(alpha_bar / (1 - alpha_bar)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "epsilon"])
@pytest.mark.parametrize("weighting", ["min-snr", "debiased"])
def test_no_signal_left_divides_by_nothing(kind, weighting):
    if (kind, weighting) == ("epsilon", "debiased"):
        with pytest.raises(ConfigError, match=r"debiased has no finite weight on this base.*zero terminal"):
            made(kind, Settings(weighting=weighting), rescale_betas_zero_snr=True)
        return
    goal = made(kind, Settings(weighting=weighting), rescale_betas_zero_snr=True)
    t = torch.tensor([0, 998, 999])
    assert goal.alphas_cumprod[-1] == 0
    prediction = torch.ones(3, 4, requires_grad=True)
    loss = goal.loss(prediction, torch.zeros(3, 4), t)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", ["sigma-sqrt", "cosmap"])
def test_flow_weights_are_those_of_the_reference(name):
    goal = made("flow", Settings(weighting=name))
    sigma = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    ones = torch.ones(50, 1)
    expected = compute_loss_weighting_for_sd3(name.replace("-", "_"), sigma)
    weights = goal.loss(ones, 0 * ones, 1000 * sigma).double()
    assert torch.allclose(weights, expected.double(), rtol=1e-5)
    assert torch.isfinite(goal.loss(ones[:1], 0 * ones[:1], torch.zeros(1))).all()  # without any noise
    if name == "cosmap":  # a density over the noise level
        assert torch.trapezoid(weights, sigma).item() == pytest.approx(1, abs=0.01)
    with pytest.raises(ConfigError, match=rf"{name} belongs to flow matching.*ddpm model \(epsilon\)"):
        made("epsilon", Settings(weighting=name))


@pytest.mark.parametrize(("gamma", "kind"), [(1e-4, "epsilon"), (1e5, "v_prediction"), (1e9, "flow")])
def test_a_gamma_that_changes_nothing_on_the_base_is_refused(gamma, kind):
    with pytest.raises(ConfigError, match=r"changes no weight on this base.*ratio goes from"):
        made(kind, Settings(weighting="min-snr", gamma=gamma))


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_pseudo_huber_with_its_schedules(kind, schedule):
    c0 = 0.1
    goal = made(kind, Settings(huber={"c": c0, "schedule": schedule}))
    _, t, target = goal.noise(X, N, U)
    signal, spread = signal_and_spread(goal, t)
    share = t.double() / 1000
    c = {
        "constant": torch.full((32,), c0).double(),
        "exponential": torch.exp(math.log(c0) * share),
        "snr": (1 - c0) / (1 + spread / signal) ** 2 + c0,
    }[schedule].view(-1, 1, 1, 1)
    error = 3 * ERROR
    expected = (2 * c * ((error**2 + c**2).sqrt() - c)).flatten(1).mean(1)
    assert torch.allclose(goal.loss(target + error, target, t).double(), expected, rtol=1e-4)
    small = goal.loss(target + 1e-3 * error, target, t).double()
    assert torch.allclose(small, (1e-3 * error).square().flatten(1).mean(1), rtol=1e-2)


def test_a_mask_weighs_positions_and_normalises_by_its_area():
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0], mask[1, 0, :, 0] = 1.0, 0.5
    prediction = torch.arange(16.0).view(2, 2, 2, 2)
    zero, t = torch.zeros_like(prediction), torch.zeros(2)
    normal = made("flow", Settings(mask={}))
    assert normal.loss(prediction, zero, t, mask).tolist() == [(0 + 16) / 2, (64 + 100 + 144 + 196) / 4]
    plain = made("flow", Settings(mask={"normalise": False}))
    assert plain.loss(prediction, zero, t, mask).tolist() == [16 / 8, 0.5 * (64 + 100 + 144 + 196) / 8]
    assert normal.loss(prediction, zero, t, torch.zeros(2, 1, 2, 2)).tolist() == [0, 0]
    film = prediction[:, :, None].expand(-1, -1, 3, -1, -1)
    assert torch.equal(normal.loss(film, 0 * film, t, mask), normal.loss(prediction, zero, t, mask))


@pytest.mark.parametrize("poison", [1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{"mask": {}}, {"mask": {"normalise": False}, "huber": {}}])
def test_what_lies_outside_a_mask_changes_no_bit_of_loss_or_gradient(settings, poison):
    goal = made("flow", Settings(**settings))
    mask = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.6).float()
    target, found = X[:4].float(), []
    for values in (target, torch.where(mask > 0, target, poison)):
        prediction = N[:4].float().requires_grad_()
        loss = goal.loss(prediction, values, U[:4] * 1000, mask)
        loss.sum().backward()
        found.append((loss.detach(), prediction.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert (found[0][1] * (1 - mask) == 0).all()
    assert (found[0][1] != 0).any()


def test_without_settings_the_loss_is_the_plain_one_bit_for_bit():
    scheduler = DDPMScheduler()
    goal = objective_from_scheduler("ddpm", scheduler.config, Settings(), scheduler.alphas_cumprod)
    a, b = X.float(), N.float()
    assert torch.equal(goal.loss(a, b, torch.zeros(32)), (a - b).square().flatten(1).mean(1))
