"""Sliders: no images, a target by the base alone, both directions of it."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.config import recipe
from lorakit.core import launch, storage
from lorakit.core.errors import ConfigError
from lorakit.data.batch_sampler import SampleIndex
from lorakit.training import checkpoint, slider
from lorakit.training.losses import TrainingLoss
from lorakit.training.trainer import Trainer
from tests import runs, tiny

SLIDER = {
    "target": "a ring",
    "positive": "a red ring",
    "negative": "a blue ring",
    "pictures": 3,
    "guidance": 2.0,
}


def written(folder, **changes):
    tree = {
        "base": str(tiny.tiny_folder("sd15")),
        "out": str(folder / "run"),
        "resolution": 64,
        "slider": SLIDER,
        "adapter": {"rank": 2, "alpha": 2, "targets": ["attn2.to_v"]},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "train": {"steps": 4, "save_every": 2, "precision": "fp32"},
        "samples": {"steps": 1, "guidance": 1.0},
        "export": [],
    } | changes
    return storage.write_json(folder / "recipe.json", tree)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    """The recipe and its finished run, killed once; and the bytes of a whole one."""
    adapters = []
    for name in ("whole", "killed"):
        folder = tmp_path_factory.mktemp(name)
        file = written(folder)
        drawn = slider.generate_slider_images(recipe.load_recipe(file))
        assert drawn == folder / "run-pictures"
        if name == "killed":
            with runs.killed_at(3):
                runs.train(file)
        adapters.append((runs.train(file) / "adapter.safetensors").read_bytes())
    return file, adapters


def test_the_base_draws_what_is_trained_on_and_the_run_goes_on_to_the_same_bytes(world):
    file, adapters = world
    made = recipe.load_recipe(file)
    assert len(list(made.dataset.glob("*.png"))) == 3
    assert adapters[0] == adapters[1]
    before = {entry: entry.stat().st_mtime_ns for entry in made.dataset.iterdir()}
    assert slider.generate_slider_images(made) is None
    assert before == {entry: entry.stat().st_mtime_ns for entry in made.dataset.iterdir()}


def test_the_target_is_the_base_pushed_along_the_difference(world, monkeypatch):
    file, _ = world
    caught = {}

    def stop(self: Trainer) -> None:
        caught["trainer"] = self
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "rehearse", stop)
    from lorakit.training import train

    with pytest.raises(KeyboardInterrupt):
        train.train_recipe(
            recipe.load_recipe(file, [f"out={file.parent / 'other'}", f"dataset={file.parent}/run-pictures"])
        )
    made = caught["trainer"].made
    for index, (_, parameter) in enumerate(adapters.trainable_parameters(made.denoiser)):
        parameter.data = parameter.data + 0.1 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(index)
        )
    cost = slider.build_loss(made, Accelerator(cpu=True))
    slots, times = [SampleIndex(0, 0, 0), SampleIndex(1, 1, 0)], [0.3, 0.8]
    seen = []
    monkeypatch.setattr(
        type(made.objective), "loss", lambda self, got, want, t: seen.append((got, want, t)) or got.mean()
    )
    cost(made.train, slots, "noise", times)
    monkeypatch.setattr(TrainingLoss, "__call__", None)
    got, want, t = seen[0]
    noisy = _noisy(made, slots, times)

    def predict(text: str) -> torch.Tensor:
        cond = made.train.batch(slots, torch.device("cpu"), lambda _: text).cond
        with torch.no_grad():
            return made.family.predict(made.denoiser, noisy, t, cond)

    assert torch.allclose(got, predict("a ring"), atol=1e-6)
    with adapters.adapters_disabled(made.denoiser):
        expected = predict("a ring") + 2 * (predict("a red ring") - predict("a blue ring"))
    assert torch.allclose(want, expected, atol=1e-6)
    assert got.requires_grad
    assert not want.requires_grad
    assert (want - got).abs().max() > 1e-3


def _noisy(made, slots, times):
    from lorakit.core import rng

    latents = made.train.batch(slots, torch.device("cpu")).latents
    noise = torch.stack([rng.keyed_normal(tuple(latents.shape[1:]), 0, "noise", s.position) for s in slots])
    return made.objective.noise(latents, noise, torch.tensor(times))[0]


def test_pictures_of_the_user_are_never_touched(tmp_path):
    own = tmp_path / "own"
    runs.make_dataset(own, 1)
    before = {entry.name: entry.read_bytes() for entry in own.iterdir()}
    assert slider.generate_slider_images(recipe.load_recipe(written(tmp_path, dataset=str(own)))) is None
    assert before == {entry.name: entry.read_bytes() for entry in own.iterdir()}


def test_another_slider_does_not_take_these_pictures(world):
    file, _ = world
    with pytest.raises(ConfigError, match="drawn for another slider"):
        slider.generate_slider_images(recipe.load_recipe(file, ['slider.target="a line"']))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"text_encoder": True}}, "leave out adapter.text_encoder"),
        ({"embedding": {"token": "sks", "init": "red"}}, "leave out embedding"),
        ({"slider": None}, "dataset: this key is required"),
    ],
)
def test_a_slider_is_the_denoisers_and_what_is_none_needs_a_dataset(changes, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        recipe.load_recipe(written(tmp_path, **changes))
    assert said in str(caught.value)


def test_from_a_recipe_alone_through_the_command_line(tmp_path, monkeypatch):
    """`lorakit train` draws first, then trains; nothing else is given."""
    from lorakit.cli import main

    file = written(tmp_path, train={"steps": 1, "precision": "fp32"})
    monkeypatch.setattr(launch, "run_launcher", lambda command: runs.train(file) and 0)
    assert main.main(["train", str(file)]) == 0
    assert checkpoint.checkpoint_steps(tmp_path / "run") == [1]
