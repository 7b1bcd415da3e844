"""Sliders: no dataset, a target by the base alone, both directions of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.config import recipe as recipes
from lorakit.core import launch, rng, storage
from lorakit.core.errors import ConfigError
from lorakit.data.batch_sampler import SampleIndex
from lorakit.training import checkpoint, slider
from lorakit.training.setup import Session
from lorakit.training.step import TrainingStep
from tests import runs, tiny

SLIDER = {
    "target_prompt": "a ring",
    "positive_prompt": "a red ring",
    "negative_prompt": "a blue ring",
    "num_images": 3,
    "guidance_scale": 2.0,
}


def write_recipe(folder, **changes):
    tree = {
        "base": str(tiny.tiny_folder("sd15")),
        "out": str(folder / "run"),
        "resolution": 64,
        "slider": SLIDER,
        "adapter": {"rank": 2, "alpha": 2, "targets": ["attn2.to_v"]},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "train": {"steps": 4, "save_every": 2, "precision": "fp32"},
        "samples": {"num_inference_steps": 1, "guidance_scale": 1.0},
        "export": [],
    } | changes
    return storage.write_json(folder / "recipe.json", tree)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """The recipe of a run that was killed once, and the adapter files of it and of an uninterrupted run."""
    adapters = []
    for name in ("whole", "killed"):
        folder = tmp_path_factory.mktemp(name)
        file = write_recipe(folder)
        images = slider.generate_slider_images(recipes.load_recipe(file))
        assert images == folder / "run-images"
        if name == "killed":
            with runs.killed_at(3):
                runs.train(file)
        adapters.append((runs.train(file) / "adapter.safetensors").read_bytes())
    return file, adapters


def test_the_base_samples_the_training_images_once_and_the_run_resumes_to_the_same_bytes(finished):
    file, adapters = finished
    recipe = recipes.load_recipe(file)
    assert len(list(recipe.dataset.glob("*.png"))) == 3
    assert adapters[0] == adapters[1]
    before = {entry: entry.stat().st_mtime_ns for entry in recipe.dataset.iterdir()}
    assert slider.generate_slider_images(recipe) is None
    assert before == {entry: entry.stat().st_mtime_ns for entry in recipe.dataset.iterdir()}


def test_the_target_is_the_base_moved_along_the_difference(finished, monkeypatch):
    file, _ = finished
    step = _first_step(file, monkeypatch)
    session = step.session
    for index, (_, parameter) in enumerate(adapters.trainable_parameters(session.denoiser)):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.data = parameter.data + 0.1 * noise
    samples, uniforms = [SampleIndex(0, 0, 0), SampleIndex(1, 1, 0)], [0.3, 0.8]
    calls = []

    def loss(self, prediction, target, t):
        calls.append((prediction, target, t))
        return prediction.mean()

    monkeypatch.setattr(type(session.objective), "loss", loss)
    step.loss(session.train_set, samples, "noise", uniforms)
    prediction, target, t = calls[0]
    noisy_latents = _noisy_latents(session, samples, uniforms)

    def predict(caption: str) -> torch.Tensor:
        cond = session.train_set.batch(samples, torch.device("cpu"), lambda _: caption).cond
        with torch.no_grad():
            return session.family.predict(session.denoiser, noisy_latents, t, cond)

    assert torch.allclose(prediction, predict("a ring"), atol=1e-6)
    with adapters.adapters_disabled(session.denoiser):
        expected = predict("a ring") + 2 * (predict("a red ring") - predict("a blue ring"))
    assert torch.allclose(target, expected, atol=1e-6)
    assert prediction.requires_grad
    assert not target.requires_grad
    assert (target - prediction).abs().max() > 1e-3


def _first_step(file: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingStep:
    """The steps of a new run of the recipe, before the first."""
    stopped = []

    def stop(self: TrainingStep) -> None:
        stopped.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingStep, "try_largest_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.train(file, f"out={file.parent / 'other'}", f"dataset={file.parent}/run-images")
    return stopped[0]


def _noisy_latents(session: Session, samples: list[SampleIndex], uniforms: list[float]) -> torch.Tensor:
    latents = session.train_set.batch(samples, torch.device("cpu")).latents
    noise = torch.stack(
        [rng.keyed_normal(tuple(latents.shape[1:]), 0, "noise", sample.position) for sample in samples]
    )
    return session.objective.add_noise(latents, noise, torch.tensor(uniforms)).noisy_latents


def test_images_of_the_user_are_never_changed(tmp_path):
    own = tmp_path / "own"
    runs.make_dataset(own, 1)
    before = {entry.name: entry.read_bytes() for entry in own.iterdir()}
    assert (
        slider.generate_slider_images(recipes.load_recipe(write_recipe(tmp_path, dataset=str(own)))) is None
    )
    assert before == {entry.name: entry.read_bytes() for entry in own.iterdir()}


def test_the_images_of_another_slider_are_refused(finished):
    file, _ = finished
    with pytest.raises(ConfigError, match="sampled for another slider"):
        slider.generate_slider_images(recipes.load_recipe(file, ['slider.target_prompt="a line"']))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"text_encoder": True}}, "leave out adapter.text_encoder"),
        ({"textual_inversion": {"token": "sks", "initializer_token": "red"}}, "leave out textual_inversion"),
        ({"slider": None}, "dataset: this key is required"),
    ],
)
def test_settings_that_contradict_a_slider_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        recipes.load_recipe(write_recipe(tmp_path, **changes))
    assert message in str(caught.value)


def test_from_a_recipe_alone_through_the_command_line(tmp_path, monkeypatch):
    """`lorakit train` samples the images first, then trains; the recipe is all it needs."""
    from lorakit.cli import main

    file = write_recipe(tmp_path, train={"steps": 1, "precision": "fp32"})
    monkeypatch.setattr(launch, "run_training", lambda command, *_: runs.train(file) and 0)
    assert main.main(["train", str(file)]) == 0
    assert checkpoint.checkpoint_steps(tmp_path / "run") == [1]
