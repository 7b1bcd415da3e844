"""The contract of families of clips, for clips: stills of one frame are held to it beside all other families."""

from __future__ import annotations

import pytest
import torch

from lorakit import clips, vae
from tests import oracle, tiny
from tests.families.common import CAPTIONS, encoded, family_of, times

CLIPS = sorted(name for name in tiny.ROWS if family_of(name).clips)
all_clips = pytest.mark.parametrize("name", CLIPS)


def _frames(name: str) -> int:
    """Frames of a clip of two latents."""
    return 1 + family_of(name).frame_step(tiny.tiny_pipeline(name))


def _noise(name: str, rows: int = 1) -> torch.Tensor:
    """Noise (rows, C, 2, H, W)."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    shape = family.latent_shape(pipe, *tiny.ROWS[name].sizes[1], _frames(name))
    assert shape[1] == 2
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(4))


@all_clips
def test_predict_equals_the_pipeline(name):
    family, pipe, size = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name].sizes[1]
    noise, cond = _noise(name), family.collate(encoded(name, CAPTIONS[:1], size))
    for t in times(family):
        with torch.no_grad():
            expected = oracle.prediction(name, pipe, CAPTIONS[0], noise, t, *size, num_frames=_frames(name))
            ours = family.predict(family.denoiser(pipe), noise, t[None], cond)
        assert ours.shape == expected.shape == noise.shape
        assert expected.abs().max() > 0.01
        assert (ours - expected).abs().max() <= 1e-6


@all_clips
def test_batch_of_two_equals_two_singles_and_frames_matter(name):
    family, pipe, size = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name].sizes[1]
    noise, t, conds = _noise(name, 2), times(family), encoded(name, CAPTIONS, size)
    model = family.denoiser(pipe)
    with torch.no_grad():
        both = family.predict(model, noise, t, family.collate(conds))
        for i in range(2):
            one = family.predict(model, noise[i, None], t[i, None], family.collate(conds[i : i + 1]))
            assert (both[i] - one[0]).abs().max() <= 1e-5
        turned = family.predict(model, noise.flip(2), t, family.collate(conds)).flip(2)
    assert (turned - both).abs().max() > 1e-4


@all_clips
def test_latents_are_the_pipelines(name):
    """Decoded as it decodes them, and encoded the other way round."""
    pipe, size = tiny.build(name), tiny.ROWS[name].sizes[1]
    family_of(name)._settle(pipe)
    frames, latents = _frames(name), _noise(name, 2)
    expected = oracle.decoded(name, tiny.tiny_pipeline(name), latents, *size, num_frames=frames)
    ours = (vae.decode(pipe.vae, latents) / 2 + 0.5).clamp(0, 1)
    assert ours.shape == expected.shape == (2, 3, frames, size[1], size[0])
    assert (ours - expected).abs().max() <= 5e-5
    pixels = torch.rand(2, 3, frames, size[1], size[0], generator=torch.Generator().manual_seed(5)) * 2 - 1
    mean, std = vae.encode(pipe.vae, pixels)
    assert mean.shape == std.shape == latents.shape
    with torch.no_grad():
        again = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean, return_dict=False)[0]
    assert (vae.decode(pipe.vae, mean) - again).abs().max() <= 1e-4


@all_clips
def test_films_equal_the_pipeline_called_with_text(name):
    family, pipe, row = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name]
    size, noise, frames = row.sizes[1], _noise(name), _frames(name)
    cond, negative = (family.collate(encoded(name, [text], size)) for text in (CAPTIONS[0], ""))
    options = {"width": size[0], "height": size[1]}
    film = family.films(pipe, cond, negative, noise, steps=2, guidance=4.0, **options)[0]
    settings = {"output_type": "pil", "num_inference_steps": 2, **row.call, **(row.on or row.off), **options}
    settings |= {"num_frames": frames, "generator": [torch.Generator().manual_seed(0)]}
    theirs = pipe(prompt=CAPTIONS[:1], latents=row.given(pipe, noise), **settings)[0][0]
    assert len(film) == len(theirs) == frames
    for mine, other in zip(film, theirs, strict=True):
        assert max(abs(a - b) for a, b in zip(mine.tobytes(), other.tobytes(), strict=True)) <= 1
    strip = family.sample(pipe, cond, negative, noise, steps=2, guidance=4.0, **options)[0]
    assert strip.tobytes() == clips.strip(film).tobytes()
    assert strip.size == (len({0, frames // 2, frames - 1}) * size[0], size[1])
