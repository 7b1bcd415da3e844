"""Bases in 4 and 8 bits: every family trains through them, and what changes is measured."""

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
from lorakit.models import base_model, families, quantize
from lorakit.training import objective, optimizers
from tests import runs, tiny
from tests.models.families.common import CAPTIONS, encoded, family_of, noise_for, times


class Quantised:
    """A tiny network in fewer bits with an adapter that does something, and inputs for it."""

    def __init__(self, name: str, kind: str) -> None:
        self.family, self.pipe = family_of(name), tiny.tiny_pipeline(name)
        self.model = copy.deepcopy(self.family.denoiser(self.pipe))
        self.noise, self.t = noise_for(name), times(self.family)[:1]
        self.cond = self.family.collate(encoded(name, CAPTIONS[:1]))
        self.plain = self.predict()
        self.count = quantize.quantize_linear_layers(self.model, kind, "cpu", torch.float32)
        self.error = float((self.predict() - self.plain).norm() / self.plain.norm())
        adapters.inject_adapter(self.model, rank=2, alpha=2, targets=self.family.targets)
        self.parameters = adapters.trainable_parameters(self.model)
        for key, parameter in self.parameters:
            if key.endswith("lora_B.weight"):
                parameter.data.normal_(std=0.3, generator=rng.generator(0, "B", key))

    def predict(self) -> torch.Tensor:
        with torch.no_grad():
            return self.family.predict(self.model, self.noise, self.t, self.cond)

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """Of the adapter; they are taken away again."""
        for t in times(self.family).split(1) if self.family.experts else [self.t]:
            self.family.predict(self.model, self.noise, t, self.cond).square().mean().backward()
        found = {key: parameter.grad for key, parameter in self.parameters}
        for _, parameter in self.parameters:
            parameter.grad = None
        return found


@pytest.mark.parametrize("name", sorted(name for name, row in tiny.ROWS.items() if row.shown is None))
def test_every_family_learns_through_four_bits(name):
    made = Quantised(name, "nf4")
    assert made.count > 0
    assert 1e-4 < made.error < 0.4  # of random weights, which are the hardest to round
    gradients = made.gradients()
    dead = {key for key, gradient in gradients.items() if gradient is None or not gradient.any()}
    expected = tiny.ROWS[name].dead
    assert dead == {key for key in gradients if expected and re.search(expected, key)}


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35", "flux1-dev", "qwen-image", "z-image", "hidream"])
def test_eight_bits_are_nearly_exact(name):
    made = Quantised(name, "int8")
    assert 1e-5 < made.error < 0.02
    assert any(gradient is not None and gradient.any() for gradient in made.gradients().values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "nf4") for name in ("sd15", "sd35", "flux1-dev", "qwen-image", "sana")), ("sd35", "int8")],
)
def test_fifteen_steps_lower_the_loss(name, kind):
    made = Quantised(name, kind)
    scheduler = made.pipe.scheduler
    alphas = getattr(scheduler, "alphas_cumprod", None)
    goal = objective.objective_from_scheduler(
        made.family.objective, scheduler.config, recipe.ObjectiveConfig(), alphas
    )
    latents = rng.keyed_normal(tuple(made.noise.shape[1:]), 0, "picture")[None]
    noisy, t, target = goal.noise(latents, made.noise, torch.tensor([0.6]))
    optimizer = optimizers.build_optimizer(made.parameters, recipe.OptimizerConfig(lr=1e-2))
    losses = []
    for _ in range(15):
        loss = goal.loss(made.family.predict(made.model, noisy.float(), t, made.cond), target, t).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0], losses


@pytest.mark.parametrize(("base", "four"), [("tiny-dit", 0.12), ("tiny-unet", 0.2)])
def test_a_trained_base_predicts_nearly_the_same(base, four):
    """The embedded ones; measured 0.09 and 0.14 in 4 bits, 0.008 and 0.004 in 8."""
    folder = base_model.resolve_base(base)
    family = families.detect_family(folder)
    pipe = family.load(folder, dtype=torch.float32)
    cond = family.collate(family.encode(pipe, ["a red circle", "a small green square"] * 2))
    noise = torch.stack([rng.keyed_normal(family.latent_shape(pipe, 64, 64), i, "noise") for i in range(4)])
    times = torch.tensor([100, 350, 600, 900]).to(
        torch.int64 if family.objective == "ddpm" else torch.float32
    )
    found = {}
    for kind in (None, "int8", "nf4"):
        model = copy.deepcopy(family.denoiser(pipe))
        size = _bytes(model)
        if kind:
            quantize.quantize_linear_layers(model, kind, "cpu", torch.float32)
        with torch.no_grad():
            found[kind] = family.predict(model, noise, times, cond), _bytes(model) / size
    exact, _ = found[None]
    errors = {kind: float((made - exact).norm() / exact.norm()) for kind, (made, _) in found.items()}
    assert 1e-3 < errors["int8"] < 0.02
    assert 0.02 < errors["nf4"] < four
    assert found["nf4"][1] < found["int8"][1] < 0.8


def _bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_look_without_gradients_changes_nothing(kind):
    """Some CPUs would repack weights for inference, for good, and lose the gradient."""
    made = Quantised("sd35", kind)
    before = made.gradients()
    made.model.eval()
    for _ in range(2):
        made.predict()
    after = made.gradients()
    assert all(torch.equal(before[key], after[key]) for key in before if before[key] is not None)


def test_what_is_swapped():
    model = copy.deepcopy(tiny.tiny_pipeline("chroma").transformer)
    quantize.quantize_linear_layers(model, "nf4", "cpu", torch.bfloat16)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["transformer_blocks.0.attn.to_q"] == "Linear4bit"
    assert kinds["transformer_blocks.0.ff.net.2"] == "Linear4bit"
    kept = ("x_embedder", "context_embedder", "proj_out", "distilled_guidance_layer.layers.0.linear_1")
    assert {kinds[name] for name in kept} == {"Linear"}
    bias = model.transformer_blocks[0].attn.to_q.bias
    assert bias.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ConfigError, match="no layer of this base"):
        quantize.quantize_linear_layers(torch.nn.Sequential(), "nf4", "cpu", torch.float32)


def test_killed_and_resumed_the_adapter_is_the_same_file_and_loads_anywhere(tmp_path):
    data = runs.make_dataset(tmp_path / "data")

    def made(name: str, **memory: str) -> Path:
        return runs.make_recipe(
            tmp_path / f"{name}.json", tiny.tiny_folder("sd35"), data, tmp_path / name, memory=memory
        )

    whole = runs.train(made("whole", quantize="nf4"))
    file = made("broken", quantize="nf4")
    with runs.killed_at(6):
        runs.train(file)
    broken = runs.train(file)
    assert "going on from step 4" in (broken / "log.txt").read_text()
    assert (broken / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    plain = runs.train(made("plain"))
    tensors = [storage.read_safetensors(run / "adapter.safetensors") for run in (whole, plain)]
    assert tensors[0].keys() == tensors[1].keys()
    assert {n: v.shape for n, v in tensors[0].items()} == {n: v.shape for n, v in tensors[1].items()}
    facts = [adapters.read_adapter_metadata(run / "adapter.safetensors") for run in (whole, plain)]
    assert facts[0]["recipe_hash"] != facts[1]["recipe_hash"]
    with pytest.raises(ConfigError, match=r"memory\.quantize"):
        runs.train(made("plain", quantize="nf4"))
