"""A short pre-training of every part learns, resumes, and writes folders that load."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lorakit.core.errors import ConfigError, NumericError
from lorakit.quickstart import shape_world
from tests.long_tier import long
from tests.pretraining import assess, autoencoder, clip, denoisers, models, muon, pretrain
from tests.pretraining.loop import PretrainJob, run_training_loop
from tests.pretraining.tokenizer import build_tokenizer

BUDGET = 600.0  # minutes, so that the learning rate never decays in these few steps


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def job(name: str, out: Path, steps: int) -> PretrainJob:
    return PretrainJob(name, out, BUDGET, max_steps=steps, warmup_steps=5, ema_decay=0.9, quiet=True)


def test_muon_makes_matrices_orthogonal() -> None:
    stack = torch.randn(3, 20, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.newton_schulz(stack))
    assert values.min() > 0.5
    assert values.max() < 1.5
    tall = muon.newton_schulz(stack.mT)
    torch.testing.assert_close(tall, muon.newton_schulz(stack).mT, atol=0.02, rtol=0)


def test_muon_updates_matrices_and_convolutions_and_adamw_the_rest() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.Linear(16, 32), torch.nn.LayerNorm(32))
    matrices, others = muon.build_optimizers(model, 1e-3)
    assert isinstance(matrices, muon.Muon)
    assert [len(o.param_groups[0]["params"]) for o in (matrices, others)] == [2, 4]


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    clip.pretrain_clip(job("clip", folder, 30), folder / "foundation", batch=64)
    return folder / "foundation"


@long
def test_clip_learns_far_above_chance_and_loads(small_clip: Path) -> None:
    model, tokenizer = clip.load_clip(small_clip)
    assert clip.retrieval_recall(model, tokenizer, count=64, seed=3) > 5 / 64
    untrained = clip.build_clip(len(build_tokenizer())).eval()
    assert clip.retrieval_recall(untrained, tokenizer, count=64, seed=3) < 5 / 64


@pytest.fixture(scope="module")
def small_vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    before = autoencoder.psnr(autoencoder.build_autoencoder(), count=32)
    autoencoder.pretrain_autoencoder(job("autoencoder", folder, 60), folder / "vae", batch=16)
    return folder / "vae", before


@long
def test_the_autoencoder_learns_and_measures_its_scaling_factor(small_vae: tuple[Path, float]) -> None:
    folder, before = small_vae
    vae = autoencoder.load_autoencoder(folder)
    assert autoencoder.psnr(vae, count=32) > before + 5
    images = shape_world.render_scenes(
        [shape_world.random_scene(np.random.default_rng(k)) for k in range(32)]
    )
    assert math.isclose(
        float(autoencoder.encode_scene_latents(vae, images).std()) * vae.config.scaling_factor,
        1,
        abs_tol=0.3,
    )
    assert vae.config.shift_factor == 0


@long
@pytest.mark.parametrize("kind", models.PIPELINE_CLASSES)
def test_a_denoiser_learns_and_its_folder_is_a_pipeline(
    kind: str, small_clip: Path, small_vae: tuple[Path, float], tmp_path: Path
) -> None:
    run = job(kind, tmp_path, 15)
    denoisers.pretrain_denoiser(
        run,
        kind,
        tmp_path / kind,
        clip=clip.load_clip(small_clip),
        vae=autoencoder.load_autoencoder(small_vae[0]),
        batch=16,
        compositions=60,
        assess_count=8,
    )
    assert np.mean(run.losses[-5:]) < 0.8 * np.mean(run.losses[:3])
    pipe = models.load_pipeline(tmp_path / kind)
    assert type(pipe).__name__ == models.PIPELINE_CLASSES[kind]
    assert assess.sample_prompts(pipe, ["a red heart"], steps=2).shape == (
        1,
        shape_world.IMAGE_SIZE,
        shape_world.IMAGE_SIZE,
        3,
    )


def fit_a_line(run: PretrainJob) -> torch.nn.Module:
    """Run the loop on a linear model: 12 inputs, 12 outputs, noisy targets."""
    torch.manual_seed(0)
    model = torch.nn.Linear(12, 12)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        x = torch.from_numpy(rng.normal(size=(8, 12))).float()
        return (model(x).float() - x.flip(1) - 0.1 * torch.randn(8, 12)).square().mean()

    return run_training_loop(run, model, muon.build_optimizers(model, 1e-2), loss)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight = job("line", tmp_path / "straight", 40)
    whole = fit_a_line(straight)
    first, second = (job("line", tmp_path / "stopped", steps) for steps in (17, 40))
    fit_a_line(first)
    resumed = fit_a_line(second)
    assert first.losses + second.losses == straight.losses
    assert np.mean(straight.losses[-5:]) < 0.7 * np.mean(straight.losses[:5])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = torch.nn.Linear(12, 12)
    with pytest.raises(NumericError, match="nan at step 0"):
        run_training_loop(
            job("line", tmp_path, 3),
            model,
            muon.build_optimizers(model, 1),
            lambda _: model.weight.sum() * float("nan"),
        )
    assert not job("line", tmp_path, 3).checkpoint.exists()


@long
def test_no_unseen_composition_enters_the_latents(small_vae: tuple[Path, float], tmp_path: Path) -> None:
    pool = denoisers.build_latent_pool(
        autoencoder.load_autoencoder(small_vae[0]), tmp_path / "latents.safetensors", compositions=20
    )
    assert len(pool.latents) == len(pool.scenes) == 20 * denoisers.JITTERS_PER_SCENE
    assert not any(shape_world.is_held_out(scene) for scene in pool.scenes)
    again = denoisers.build_latent_pool(None, tmp_path / "latents.safetensors", compositions=20)
    assert torch.equal(again.latents, pool.latents)
    assert again.scenes == pool.scenes


def test_a_stage_needs_the_earlier_stages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage clip must come first"):
        pretrain.run_stage("dit", tmp_path, 1, "cpu")
    assert pretrain.main(["--stage", "unet", "--out", str(tmp_path)]) == ConfigError.exit_code


@long
def test_the_joint_accuracy_is_not_above_that_of_its_attributes(small_clip: Path) -> None:
    scenes = assess.unseen_scenes(8, seed=1)
    assert len({shape_world.scene_caption(scene) for scene in scenes}) == 8
    assert all(shape_world.is_held_out(scene) for scene in scenes)
    correct = assess.clip_choices(*clip.load_clip(small_clip), shape_world.render_scenes(scenes), scenes)
    shares = assess.accuracy_by_attribute(correct)
    assert shares["joint"] <= min(shares[name] for name in assess.JOINT_ATTRIBUTES)


def test_degraded_images_train_only_the_image_tower(small_clip: Path, tmp_path: Path) -> None:
    before, tokenizer = clip.load_clip(small_clip)
    clip.pretrain_clip(
        job("rough", tmp_path, 2),
        tmp_path / "rough",
        batch=16,
        attribute_weights=clip.STAGE3_WEIGHTS,
        start=small_clip,
        degrade=True,
    )
    after, _ = clip.load_clip(tmp_path / "rough")
    ids = clip.tokenize(tokenizer, ["a small dotted pink ring"])
    assert torch.equal(clip.encode_texts(before, ids), clip.encode_texts(after, ids))
    images = shape_world.render_scenes(assess.unseen_scenes(2, seed=4))
    assert not torch.equal(clip.encode_images(before, images), clip.encode_images(after, images))


def test_degraded_images_stay_close_to_the_true_ones() -> None:
    rng = np.random.default_rng(6)
    scenes = [shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES) for _ in range(40)]
    error = np.abs(clip.degrade_images(rng, scenes).astype(int) - shape_world.render_scenes(scenes)).mean(
        axis=(1, 2, 3)
    )
    assert 0 < error.mean() < 12  # of 255
    assert error.max() < 40
