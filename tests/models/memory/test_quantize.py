"""Base models in 4 and 8 bits: every family trains through them, with a measured error."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.config import recipe
from lorakit.core import rng, storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model, families
from lorakit.models.memory import quantize
from lorakit.training import objective, optimizers
from lorakit.training.flat_parameters import FlatParameters
from tests import runs, tiny
from tests.models.families.common import CAPTIONS, encoded, family_of, noise_for, two_timesteps


class Quantized:
    """A tiny quantized network with an adapter that has an effect, and inputs for it."""

    def __init__(self, name: str, quantization: str) -> None:
        self.family, self.pipe = family_of(name), tiny.tiny_pipeline(name)
        self.model = copy.deepcopy(self.family.denoiser(self.pipe))
        self.noise, self.t = noise_for(name), two_timesteps(self.family)[:1]
        self.cond = self.family.collate(encoded(name, CAPTIONS[:1]))
        self.plain = self.predict()
        self.count = quantize.quantize_linear_layers(self.model, quantization, "cpu", torch.float32)
        self.error = float((self.predict() - self.plain).norm() / self.plain.norm())
        adapters.inject_adapter(self.model, rank=2, alpha=2, targets=self.family.target_modules)
        self.parameters = adapters.trainable_parameters(self.model)
        for key, parameter in self.parameters:
            if key.endswith("lora_B.weight"):
                parameter.data.normal_(std=0.3, generator=rng.generator(0, "B", key))

    def predict(self) -> torch.Tensor:
        with torch.no_grad():
            return self.family.predict(self.model, self.noise, self.t, self.cond)

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """Return the adapter's gradients, and clear them."""
        for t in two_timesteps(self.family).split(1) if self.family.components.experts else [self.t]:
            self.family.predict(self.model, self.noise, t, self.cond).square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in self.parameters}
        for _, parameter in self.parameters:
            parameter.grad = None
        return gradients


@pytest.mark.parametrize(
    "name", sorted(name for name, row in tiny.ROWS.items() if row.image_arguments is None)
)
def test_every_family_learns_through_four_bits(name):
    quantized = Quantized(name, "nf4")
    assert quantized.count > 0
    assert 1e-4 < quantized.error < 0.4  # of random weights, which are the hardest to round
    gradients = quantized.gradients()
    dead = {key for key, gradient in gradients.items() if gradient is None or not gradient.any()}
    expected = tiny.ROWS[name].no_gradient
    assert dead == {key for key in gradients if expected and re.search(expected, key)}


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35", "flux1-dev", "qwen-image", "z-image", "hidream"])
def test_eight_bits_are_nearly_exact(name):
    quantized = Quantized(name, "int8")
    assert 1e-5 < quantized.error < 0.02
    assert any(gradient is not None and gradient.any() for gradient in quantized.gradients().values())


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        *((name, "nf4") for name in ("sd15", "sd35", "flux1-dev", "qwen-image", "sana")),
        ("sd35", "int8"),
        ("sd35", "fp8"),
    ],
)
def test_fifteen_steps_lower_the_loss(name, quantization):
    quantized = Quantized(name, quantization)
    scheduler = quantized.pipe.scheduler
    alphas = getattr(scheduler, "alphas_cumprod", None)
    goal = objective.objective_from_scheduler(
        quantized.family.objective, scheduler.config, recipe.ObjectiveConfig(), alphas
    )
    latents = rng.keyed_normal(tuple(quantized.noise.shape[1:]), 0, "picture")[None]
    noised = goal.add_noise(latents, quantized.noise, torch.tensor([0.6]))
    noisy_latents, timesteps = noised.noisy_latents.float(), noised.timesteps
    parameters = FlatParameters(quantized.parameters)
    optimizer = optimizers.build_optimizer(parameters, recipe.OptimizerConfig(lr=1e-2))
    losses = []
    for _ in range(15):
        prediction = quantized.family.predict(quantized.model, noisy_latents, timesteps, quantized.cond)
        loss = goal.loss(prediction, noised.target, timesteps).mean()
        losses.append(loss.item())
        parameters.zero_gradients()
        loss.backward()
        parameters.add_gradients()
        optimizers.take_step(optimizer, parameters)
    assert losses[-1] < 0.97 * losses[0], losses


@pytest.mark.parametrize(("base", "four"), [("tiny-dit", 0.12), ("tiny-unet", 0.2)])
def test_a_trained_base_model_predicts_nearly_the_same(base, four):
    """The embedded ones; measured errors are 0.09 and 0.14 in 4 bits, 0.008 and 0.004 in 8."""
    folder = base_model.resolve_base(base)
    family = families.detect_family(folder)
    pipe = family.load(folder, dtype=torch.float32)
    cond = family.collate(family.encode_text(pipe, ["a red circle", "a small green square"] * 2))
    noise = torch.stack([rng.keyed_normal(family.latent_shape(pipe, 64, 64), i, "noise") for i in range(4)])
    timesteps = torch.tensor([100, 350, 600, 900]).to(
        torch.int64 if family.objective == "ddpm" else torch.float32
    )
    results = {}
    for quantization in (None, "int8", "nf4", "fp8"):
        model = copy.deepcopy(family.denoiser(pipe))
        size = _bytes(model)
        if quantization:
            quantize.quantize_linear_layers(model, quantization, "cpu", torch.float32)
        with torch.no_grad():
            results[quantization] = family.predict(model, noise, timesteps, cond), _bytes(model) / size
    exact, _ = results[None]
    errors = {
        quantization: float((prediction - exact).norm() / exact.norm())
        for quantization, (prediction, _) in results.items()
    }
    assert 1e-3 < errors["int8"] < 0.02
    assert errors["int8"] < errors["fp8"] < 0.05
    assert 0.02 < errors["nf4"] < four
    assert results["nf4"][1] < results["int8"][1] < 0.8


def _bytes(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("quantization", ["nf4", "int8", "fp8"])
def test_inference_without_gradients_changes_nothing(quantization):
    """Some CPUs would repack weights permanently for inference, and lose the gradient."""
    quantized = Quantized("sd35", quantization)
    before = quantized.gradients()
    quantized.model.eval()
    for _ in range(2):
        quantized.predict()
    after = quantized.gradients()
    assert all(torch.equal(before[key], after[key]) for key in before if before[key] is not None)


def test_only_linear_layers_in_numbered_blocks_are_quantized():
    model = copy.deepcopy(tiny.tiny_pipeline("chroma").transformer)
    quantize.quantize_linear_layers(model, "nf4", "cpu", torch.bfloat16)
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    assert classes["transformer_blocks.0.attn.to_q"] == "Nf4Linear"
    assert classes["transformer_blocks.0.ff.net.2"] == "Nf4Linear"
    kept = ("x_embedder", "context_embedder", "proj_out", "distilled_guidance_layer.layers.0.linear_1")
    assert {classes[name] for name in kept} == {"Linear"}
    bias = model.transformer_blocks[0].attn.to_q.bias
    assert bias.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ConfigError, match="no layer of this base model can be quantized"):
        quantize.quantize_linear_layers(torch.nn.Sequential(), "nf4", "cpu", torch.float32)


def test_killed_and_resumed_the_adapter_is_the_same_file_and_loads_anywhere(tmp_path):
    data = runs.make_dataset(tmp_path / "data")

    def write_recipe(name: str, **memory: str) -> Path:
        return runs.make_recipe(
            tmp_path / f"{name}.json", tiny.tiny_folder("sd35"), data, tmp_path / name, memory=memory
        )

    whole = runs.train(write_recipe("whole", quantize="nf4"))
    file = write_recipe("broken", quantize="nf4")
    with runs.killed_at(6):
        runs.train(file)
    resumed = runs.train(file)
    assert "resuming from step 4" in (resumed / "log.txt").read_text()
    assert (resumed / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    plain = runs.train(write_recipe("plain"))
    tensors = [storage.read_safetensors(run / "adapter.safetensors") for run in (whole, plain)]
    assert tensors[0].keys() == tensors[1].keys()
    assert {n: v.shape for n, v in tensors[0].items()} == {n: v.shape for n, v in tensors[1].items()}
    metadata = [adapters.read_adapter_metadata(run / "adapter.safetensors") for run in (whole, plain)]
    assert metadata[0]["recipe_hash"] != metadata[1]["recipe_hash"]
    with pytest.raises(ConfigError, match=r"memory\.quantize"):
        runs.train(write_recipe("plain", quantize="nf4"))
