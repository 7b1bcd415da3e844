"""The training part of a family's contract: adapters cover all attention layers, learn, and are restored."""

from __future__ import annotations

import math
import re

import pytest
import torch

from lorakit import adapters
from lorakit.config import recipe
from lorakit.core import rng, storage
from lorakit.models import vae
from lorakit.models.memory import MemorySettings, placement
from lorakit.training import objective, optimizers
from lorakit.training.flat_parameters import FlatParameters
from tests import tiny
from tests.models.families.common import CAPTIONS, all_rows, encode_all, family_of, noise_for, two_timesteps

RANK = 2


class Trial:
    """A fresh tiny pipeline with an adapter, one caption, one image, one noise, one timestep."""

    def __init__(self, name: str, *, random: bool = True) -> None:
        self.family, self.pipe = family_of(name), tiny.build(name)
        self.model = self.family.denoiser(self.pipe)
        adapters.inject_adapter(self.model, rank=RANK, alpha=RANK, targets=self.family.target_modules)
        if random:
            for key, parameter in adapters.trainable_parameters(self.model):
                if key.endswith("lora_B.weight"):
                    parameter.data.normal_(std=0.3, generator=rng.generator(0, "B", key))
        self.noise, self.t = noise_for(name), two_timesteps(self.family)[:1]
        self.cond = self.family.collate(encode_all(name, self.pipe, CAPTIONS[:1]))

    def predict(self, noisy: torch.Tensor | None = None, t: torch.Tensor | None = None) -> torch.Tensor:
        inputs = self.noise if noisy is None else noisy, self.t if t is None else t
        return self.family.predict(self.model, *inputs, self.cond)

    def gradients(self) -> dict[str, torch.Tensor | None]:
        # each expert learns at its own timesteps
        for t in two_timesteps(self.family).split(1) if self.family.components.experts else [self.t]:
            self.predict(t=t).square().mean().backward()
        return {key: parameter.grad for key, parameter in adapters.trainable_parameters(self.model)}

    def objective(self) -> objective.Objective:
        scheduler = self.pipe.scheduler
        alphas = getattr(scheduler, "alphas_cumprod", None)
        return objective.objective_from_scheduler(
            self.family.objective, scheduler.config, recipe.ObjectiveConfig(), alphas
        )


@all_rows
def test_target_modules_cover_every_attention_projection(name):
    """By peft's own matching, and without leaving out an attention layer of the denoiser."""
    row, model = tiny.ROWS[name], Trial(name).model
    adapted = {key.rsplit(".lora_", 1)[0] for key, _ in adapters.trainable_parameters(model)}
    linear = {
        key.removesuffix(".base_layer")
        for key, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and re.search(row.attention_layers, key)
        and ".lora_" not in key
    }
    assert adapted == linear
    assert len(adapted) == row.modules


@all_rows
def test_gradients_reach_the_adapter(name):
    """To all parameters but those that the row names and explains."""
    gradients = Trial(name).gradients()
    dead = {key for key, gradient in gradients.items() if gradient is None or not gradient.any()}
    expected = tiny.ROWS[name].no_gradient
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
    """AdamW8bit on one image, with the VAE's own latents and the base model's own objective."""
    trial = Trial(name, random=False)
    width, height = tiny.ROWS[name].sizes[0]
    pixels = torch.linspace(-1, 1, 3 * width * height).view(1, 3, height, width)
    latents = vae.encode_latents(trial.pipe.vae, pixels[:, :, None] if trial.family.is_video else pixels).mean
    goal = trial.objective()
    noised = goal.add_noise(latents, trial.noise, torch.tensor([0.6]))
    parameters = FlatParameters(adapters.trainable_parameters(trial.model))
    optimizer = optimizers.build_optimizer(parameters, recipe.OptimizerConfig(name="adamw8bit", lr=1e-2))
    trial.model.train()
    losses = []
    for _ in range(16):
        prediction = trial.predict(noised.noisy_latents.float(), noised.timesteps)
        loss = goal.loss(prediction, noised.target, noised.timesteps).mean()
        losses.append(loss.item())
        parameters.zero_gradients()
        loss.backward()
        parameters.add_gradients()
        optimizers.take_step(optimizer, parameters)
    assert math.isfinite(losses[-1])
    assert losses[-1] < 0.99 * losses[0], losses


@all_rows
def test_a_saved_adapter_is_restored(name, tmp_path):
    trial = Trial(name)
    file, component = tmp_path / "adapter.safetensors", trial.family.components.denoiser
    metadata = adapters.pack_metadata({"rank": RANK, "alpha": RANK})
    storage.write_safetensors(file, adapters.adapter_state_dict({component: trial.model}), metadata)
    fresh = trial.family.denoiser(tiny.build(name))
    adapters.load_adapter({component: fresh}, file)
    plain = trial.family.denoiser(tiny.tiny_pipeline(name))
    with torch.no_grad():
        trained = trial.predict()
        assert torch.equal(trained, trial.family.predict(fresh, trial.noise, trial.t, trial.cond))
        difference = trained - trial.family.predict(plain, trial.noise, trial.t, trial.cond)
    assert difference.abs().max() > 1e-4


@all_rows
def test_gradient_checkpointing_gives_the_same_gradients(name):
    """The blocks run twice, otherwise it would save no memory."""
    plain, checkpointed = Trial(name), Trial(name)
    passes = []
    adapted = {key.rsplit(".lora_", 1)[0] for key, _ in adapters.trainable_parameters(checkpointed.model)}
    for module in adapted:
        checkpointed.model.get_submodule(module).register_forward_hook(lambda *_: passes.append(1))
    settings = MemorySettings(gradient_checkpointing=1.0)
    placement.place(checkpointed.model, settings, torch.device("cpu"))
    checkpointed.model.train()
    expected, gradients = plain.gradients(), checkpointed.gradients()
    for key, gradient in expected.items():
        assert gradient is None or torch.equal(gradient, gradients[key]), key
    assert len(passes) > len(adapted)


@pytest.mark.parametrize("name", ["sd15-v", "kolors"])
def test_the_schedule_is_the_base_models_own(name):
    """Kolors has 1100 timesteps; Stable Diffusion 2 ends in pure noise, where v is minus the image."""
    trial = Trial(name)
    goal = trial.objective()
    latents = torch.ones_like(trial.noise)
    noised = goal.add_noise(latents, trial.noise, torch.tensor([1 - 1e-9]))
    assert noised.timesteps.item() == {"sd15-v": 999, "kolors": 1099}[name]
    if name == "sd15-v":
        assert torch.allclose(noised.noisy_latents, trial.noise, atol=1e-6)
        assert torch.allclose(noised.target, -latents, atol=1e-6)
