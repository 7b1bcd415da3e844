"""The contract of video families for videos; stills are tested with all other families."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lorakit.config import recipe
from lorakit.core.errors import ConfigError
from lorakit.imaging import video
from lorakit.models import schedulers, vae
from lorakit.models.families import detect_family
from lorakit.models.families.family import noise_seed
from lorakit.training import objective
from tests import oracle, tiny
from tests.models.families.common import CAPTIONS, encoded, family_of, images_for, two_timesteps

VIDEOS = sorted(name for name in tiny.ROWS if family_of(name).is_video)
all_videos = pytest.mark.parametrize("name", VIDEOS)


def _frames(name: str) -> int:
    """Return the number of frames of a short video."""
    return 1 + family_of(name).frame_multiple(tiny.tiny_pipeline(name))


def _noise(name: str, rows: int = 1) -> torch.Tensor:
    """Return noise (rows, C, F, H, W)."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    shape = family.latent_shape(pipe, *tiny.ROWS[name].sizes[1], _frames(name))
    assert shape[1] in (2, 3)
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(4))


@all_videos
def test_predict_equals_the_pipeline(name):
    family, pipe, size = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name].sizes[1]
    noise, cond = _noise(name), family.collate(encoded(name, CAPTIONS[:1], size, _frames(name)))
    for t in two_timesteps(family):
        with torch.no_grad():
            expected = oracle.prediction(
                name, pipe, CAPTIONS[0], noise, t, *size, images_for(name, size), num_frames=_frames(name)
            )
            ours = family.predict(family.denoiser(pipe), noise, t[None], cond)
        assert ours.shape == expected.shape == noise.shape
        assert expected.abs().max() > 0.01
        assert (ours - expected).abs().max() <= 1e-6


@all_videos
def test_batch_of_two_equals_two_singles_and_frames_matter(name):
    family, pipe, size = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name].sizes[1]
    noise, t = _noise(name, 2), two_timesteps(family)
    conds = encoded(name, CAPTIONS, size, _frames(name))
    model = family.denoiser(pipe)
    with torch.no_grad():
        both = family.predict(model, noise, t, family.collate(conds))
        for i in range(2):
            one = family.predict(model, noise[i, None], t[i, None], family.collate(conds[i : i + 1]))
            assert (both[i] - one[0]).abs().max() <= 1e-5
        reversed_frames = family.predict(model, noise.flip(2), t, family.collate(conds)).flip(2)
    assert (reversed_frames - both).abs().max() > 1e-4


@all_videos
def test_latents_are_decoded_as_by_the_pipeline_and_encoded_inversely(name):
    pipe, size = tiny.build(name), tiny.ROWS[name].sizes[1]
    family_of(name)._configure_pipeline(pipe)
    frames, latents = _frames(name), _noise(name, 2)
    images = [images_for(name, size, row) for row in range(2)]
    expected = oracle.decoded(name, tiny.tiny_pipeline(name), latents, *size, images, num_frames=frames)
    ours = (vae.decode_latents(pipe.vae, latents) / 2 + 0.5).clamp(0, 1)
    assert ours.shape == expected.shape == (2, 3, frames, size[1], size[0])
    assert (ours - expected).abs().max() <= 5e-5
    pixels = torch.rand(2, 3, frames, size[1], size[0], generator=torch.Generator().manual_seed(5)) * 2 - 1
    posterior = vae.encode_latents(pipe.vae, pixels)
    assert posterior.mean.shape == posterior.std.shape == latents.shape
    time = [torch.zeros(2)] if pipe.vae.config.get("timestep_conditioning") else []
    with torch.no_grad():
        again = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean, *time, return_dict=False)[0]
    assert (vae.decode_latents(pipe.vae, posterior.mean) - again).abs().max() <= 1e-4


@all_videos
def test_videos_equal_the_pipeline_called_with_text(name):
    family, pipe, row = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name]
    size, noise, frames = row.sizes[1], _noise(name), _frames(name)
    cond, negative = (family.collate(encoded(name, [text], size)) for text in (CAPTIONS[0], ""))
    options = {"width": size[0], "height": size[1]}
    sampling = options | {
        "num_inference_steps": 2,
        "guidance_scale": 4.0 if row.guidance_on else family.call.guidance_off,
    }
    frames_ours = family.sample_videos(pipe, cond, negative, noise, **sampling)[0]
    settings = {
        "output_type": "pil",
        "num_inference_steps": 2,
        **row.call_arguments,
        **(row.guidance_on or row.guidance_off),
        **options,
    }
    settings |= {"num_frames": frames, "generator": [torch.Generator().manual_seed(noise_seed(noise[0]))]}
    settings |= row.image_arguments(images_for(name, size)) if row.image_arguments else {}
    theirs = pipe(prompt=CAPTIONS[:1], latents=row.latents_argument(pipe, noise), **settings)[0][0]
    assert len(frames_ours) == len(theirs) == frames
    for mine, other in zip(frames_ours, theirs, strict=True):
        assert max(abs(a - b) for a, b in zip(mine.tobytes(), other.tobytes(), strict=True)) <= 1
    strip = family.sample(pipe, cond, negative, noise, **sampling)[0]
    assert strip.tobytes() == video.frame_strip(frames_ours).tobytes()
    assert strip.size == (len({0, frames // 2, frames - 1}) * size[0], size[1])


@pytest.mark.parametrize("scale", [None, 4.0])
def test_the_guidance_of_hunyuan_video_15_is_its_components(scale):
    from diffusers import ClassifierFreeGuidance

    name = "hunyuan-video-1.5"
    family, pipe, size = family_of(name), tiny.build(name), tiny.ROWS[name].sizes[1]
    pipe.guider = published = ClassifierFreeGuidance(guidance_scale=2.0)
    noise = _noise(name)
    cond, negative = (family.collate(encoded(name, [caption], size)) for caption in ("small", ""))
    options = {"num_inference_steps": 3, "width": size[0], "height": size[1]}
    ours = family.sample_videos(pipe, cond, negative, noise, guidance_scale=scale, **options)[0]
    plain = family.sample_videos(pipe, cond, negative, noise, guidance_scale=1.0, **options)[0]
    assert pipe.guider is published
    with pytest.raises(ValueError, match="needs negative embeddings"):
        family.sample_videos(pipe, cond, None, noise, guidance_scale=scale, **options)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=scale or 2.0)
    settings = {"width": size[0], "height": size[1], "num_inference_steps": 3, "output_type": "pil"}
    theirs = pipe(prompt="small", latents=noise.clone(), num_frames=_frames(name), **settings)[0][0]
    assert [frame.tobytes() for frame in ours] == [frame.tobytes() for frame in theirs]
    assert ours[0].tobytes() != plain[0].tobytes()


@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("cogvideox", {"patch_size_t": 2}, "joins latents in pairs"),
        ("hunyuan-video-1.5", {"use_meanflow": True}, "cannot be trained as a flow"),
    ],
)
def test_models_that_cannot_be_trained_are_refused_on_loading(name, setting, reason, tmp_path):
    shutil.copytree(tiny.tiny_folder(name), tmp_path / "base")
    config = tmp_path / "base/transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    with pytest.raises(ConfigError, match=reason):
        detect_family(tmp_path / "base").load(tmp_path / "base", dtype=torch.float32, only=())


def test_the_published_scheduler_of_wan_trains_and_samples():
    """It has another name for its shift, and rounds timesteps down to integers."""
    from diffusers import UniPCMultistepScheduler

    family, pipe = family_of("wan"), tiny.build("wan")
    pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    goal = objective.objective_from_scheduler(
        family.objective, pipe.scheduler.config, recipe.ObjectiveConfig()
    )
    assert goal.shift == 5.0
    pipe.scheduler.set_timesteps(4)
    assert torch.equal(pipe.scheduler.timesteps, (pipe.scheduler.sigmas[:-1] * 1000).long())
    for name in (None, "euler", "unipc"):
        with schedulers.use_sampler(pipe, family.objective, name):
            config = dict(pipe.scheduler.config)
            assert config.get("shift", config.get("flow_shift")) == 5.0
            cond = family.collate(encoded("wan", ["small"]))
            options = {"num_inference_steps": 2, "guidance_scale": 1.0, "width": 32, "height": 32}
            noise = torch.randn(1, *family.latent_shape(pipe, 32, 32))
            assert family.sample(pipe, cond, None, noise, **options)[0].size == (32, 32)


def test_each_expert_predicts_its_own_rows():
    """The boundary itself belongs to the first expert, as in the pipeline."""
    family, pipe = family_of("wan-2.2"), tiny.tiny_pipeline("wan-2.2")
    model = family.denoiser(pipe)
    assert model is family.denoiser(pipe)
    t = torch.tensor([500.0, 100.0, 499.9, 900.0])
    parts = {id(part.network): part.rows.tolist() for part in model.split_rows(t)}
    assert parts == {id(pipe.transformer): [0, 3], id(pipe.transformer_2): [1, 2]}
    noise, cond = _noise("wan-2.2", 4), family.collate(encoded("wan-2.2", CAPTIONS * 2))
    with torch.no_grad():
        batch = family.predict(model, noise, t, cond)
        for i in range(4):
            part = {name: value[i, None] for name, value in cond.items()}
            one = family.predict(model, noise[i, None], t[i, None], part)
            assert (batch[i] - one[0]).abs().max() <= 1e-5
