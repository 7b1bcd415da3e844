"""The contract of a family, the training half: adapters reach all of the attention, learn, and come back."""

from __future__ import annotations

import math
import re

import pytest
import torch

from lorakit import adapters
from lorakit.config import recipe
from lorakit.core import rng, storage
from lorakit.models import vae
from lorakit.training import objective, optimizers
from tests import tiny
from tests.models.families.common import CAPTIONS, all_rows, conditions, family_of, noise_for, times

RANK = 2


class Trial:
    """A fresh tiny pipeline with an adapter, one caption, one picture, one noise, one time."""

    def __init__(self, name: str, *, random: bool = True) -> None:
        self.family, self.pipe = family_of(name), tiny.build(name)
        self.model = self.family.denoiser(self.pipe)
        adapters.inject_adapter(self.model, rank=RANK, alpha=RANK, targets=self.family.targets)
        if random:
            for key, parameter in adapters.trainable_parameters(self.model):
                if key.endswith("lora_B.weight"):
                    parameter.data.normal_(std=0.3, generator=rng.generator(0, "B", key))
        self.noise, self.t = noise_for(name), times(self.family)[:1]
        self.cond = self.family.collate(conditions(name, self.pipe, CAPTIONS[:1]))

    def predict(self, noisy: torch.Tensor | None = None, t: torch.Tensor | None = None) -> torch.Tensor:
        inputs = self.noise if noisy is None else noisy, self.t if t is None else t
        return self.family.predict(self.model, *inputs, self.cond)

    def gradients(self) -> dict[str, torch.Tensor | None]:
        # experts learn at their own times
        for t in times(self.family).split(1) if self.family.experts else [self.t]:
            self.predict(t=t).square().mean().backward()
        return {key: parameter.grad for key, parameter in adapters.trainable_parameters(self.model)}

    def objective(self) -> objective.Objective:
        scheduler = self.pipe.scheduler
        alphas = getattr(scheduler, "alphas_cumprod", None)
        return objective.objective_from_scheduler(
            self.family.objective, scheduler.config, recipe.ObjectiveConfig(), alphas
        )


@all_rows
def test_targets_reach_every_attention_projection(name):
    """peft's own matching, and no attention layer of the denoiser left out."""
    row, model = tiny.ROWS[name], Trial(name).model
    adapted = {key.rsplit(".lora_", 1)[0] for key, _ in adapters.trainable_parameters(model)}
    linear = {
        key.removesuffix(".base_layer")
        for key, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.search(row.attention, key) and ".lora_" not in key
    }
    assert adapted == linear
    assert len(adapted) == row.modules


@all_rows
def test_gradients_reach_the_adapter(name):
    """All of it but what the row names and explains, and of that nothing."""
    gradients = Trial(name).gradients()
    dead = {key for key, gradient in gradients.items() if gradient is None or not gradient.any()}
    expected = tiny.ROWS[name].dead
    assert dead == {key for key in gradients if expected and re.search(expected, key)}
    assert len(dead) < len(gradients) / 4


@all_rows
def test_an_untrained_adapter_changes_nothing(name):
    trial = Trial(name, random=False)
    with torch.no_grad():
        adapted = trial.predict()
        with adapters.adapters_disabled(trial.model):
            assert torch.equal(adapted, trial.predict())
        plain = trial.family.denoiser(tiny.tiny_pipeline(name))
        assert torch.equal(adapted, trial.family.predict(plain, trial.noise, trial.t, trial.cond))


@all_rows
def test_fifteen_steps_lower_the_loss(name):
    """AdamW8bit on one picture, with the autoencoder's own latents and the base's own objective."""
    trial = Trial(name, random=False)
    width, height = tiny.ROWS[name].sizes[0]
    pixels = torch.linspace(-1, 1, 3 * width * height).view(1, 3, height, width)
    latents, _ = vae.encode_latents(trial.pipe.vae, pixels[:, :, None] if trial.family.clips else pixels)
    goal = trial.objective()
    noisy, t, target = goal.noise(latents, trial.noise, torch.tensor([0.6]))
    parameters = adapters.trainable_parameters(trial.model)
    optimizer = optimizers.build_optimizer(parameters, recipe.OptimizerConfig(name="adamw8bit", lr=1e-2))
    trial.model.train()
    losses = []
    for _ in range(16):
        loss = goal.loss(trial.predict(noisy.float(), t), target, t).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.isfinite(losses[-1])
    assert losses[-1] < 0.99 * losses[0], losses


@all_rows
def test_a_saved_adapter_comes_back(name, tmp_path):
    trial = Trial(name)
    file, component = tmp_path / "adapter.safetensors", trial.family.component
    facts = adapters.pack_metadata({"rank": RANK, "alpha": RANK})
    storage.write_safetensors(file, adapters.state(trial.model, component), facts)
    fresh = trial.family.denoiser(tiny.build(name))
    adapters.load(fresh, component, file)
    plain = trial.family.denoiser(tiny.tiny_pipeline(name))
    with torch.no_grad():
        trained = trial.predict()
        assert torch.equal(trained, trial.family.predict(fresh, trial.noise, trial.t, trial.cond))
        difference = trained - trial.family.predict(plain, trial.noise, trial.t, trial.cond)
    assert difference.abs().max() > 1e-4


@all_rows
def test_recomputed_activations_give_the_same_gradients(name):
    """And the blocks do run twice, or nothing would be saved."""
    plain, saving = Trial(name), Trial(name)
    passes = []
    adapted = {key.rsplit(".lora_", 1)[0] for key, _ in adapters.trainable_parameters(saving.model)}
    for module in adapted:
        saving.model.get_submodule(module).register_forward_hook(lambda *_: passes.append(1))
    saving.family.recompute(saving.model)
    saving.model.train()
    expected, found = plain.gradients(), saving.gradients()
    for key, gradient in expected.items():
        if gradient is not None:
            assert (gradient - found[key]).norm() <= 1e-5 * gradient.norm(), key
    assert len(passes) > len(adapted)


def test_without_its_mask_chroma_would_learn_wrong_gradients(monkeypatch):
    """What the workaround in its family is there for; drop both when diffusers hands the mask on itself."""
    from contextlib import nullcontext

    from lorakit.models.families import chroma

    plain, saving = Trial("chroma"), Trial("chroma")
    saving.family.recompute(saving.model)
    monkeypatch.setattr(chroma, "_mask_in_checkpoints", lambda *_: nullcontext())
    expected, found = plain.gradients(), saving.gradients()
    wrong = [key for key in expected if (expected[key] - found[key]).norm() > 1e-3 * expected[key].norm()]
    assert wrong


@pytest.mark.parametrize("name", ["sd15-v", "kolors"])
def test_the_schedule_is_the_bases_own(name):
    """Kolors has 1100 timesteps; Stable Diffusion 2 ends in noise alone, where v is minus the picture."""
    trial = Trial(name)
    goal = trial.objective()
    latents = torch.ones_like(trial.noise)
    noisy, t, target = goal.noise(latents, trial.noise, torch.tensor([1 - 1e-9]))
    assert t.item() == {"sd15-v": 999, "kolors": 1099}[name]
    if name == "sd15-v":
        assert torch.allclose(noisy, trial.noise, atol=1e-6)
        assert torch.allclose(target, -latents, atol=1e-6)
