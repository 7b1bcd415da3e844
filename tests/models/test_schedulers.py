"""Samplers by name draw what the base's own sampler draws, and leave the pipeline as it was."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.models import base_model, clip_score, schedulers
from lorakit.sampling import pipeline

TEXTS = ["a red circle on a white background", "a large blue heart", "a green ring on a yellow background"]
PROMPTS = [Prompt(str(i), text, text, seeds=(0,)) for i, text in enumerate(TEXTS)]
CASES = [
    (base, name)
    for base, kind in (("tiny-unet", "ddpm"), ("tiny-dit", "flow"))
    for name in schedulers.SAMPLERS[kind]
]


@pytest.fixture(scope="module")
def painters() -> dict[str, pipeline.SamplingPipeline]:
    return {base: pipeline.SamplingPipeline(base) for base in base_model.EMBEDDED_BASES}


@pytest.fixture(scope="module")
def clip() -> clip_score.ClipScorer:
    return clip_score.ClipScorer.local(base_model.EMBEDDED_CLIP)


def options(sampler: str | None) -> pipeline.SamplingOptions:
    return pipeline.SamplingOptions(steps=12, guidance=4.0, size=(64, 64), quiet=True, sampler=sampler)


@pytest.fixture(scope="module")
def own(painters, clip) -> dict[str, float]:
    """CLIP-T by each base's own sampler."""
    drawn = {base: painter.draw(PROMPTS, options(None), "own") for base, painter in painters.items()}
    return {base: clip.clip_t([s.image for s in shots], TEXTS).mean() for base, shots in drawn.items()}


@pytest.mark.parametrize(("base", "name"), CASES)
def test_every_sampler_draws_the_prompts(painters, clip, own, base, name):
    painter = painters[base]
    before = painter.pipe.scheduler
    shots = painter.draw(PROMPTS, options(name), name)
    assert painter.pipe.scheduler is before
    assert (
        clip.clip_t([s.image for s in shots], TEXTS).mean() > own[base] - 0.08
    )  # those that draw noise need more steps


def test_another_sampler_is_another_picture_and_the_noise_is_the_same(painters):
    painter = painters["tiny-unet"]
    ddim, euler, again = (
        np.asarray(painter.draw(PROMPTS[:1], options(name), "x")[0].image, np.int16)
        for name in ("ddim", "euler-a", "ddim")
    )
    assert np.abs(ddim - again).max() == 0
    assert np.abs(ddim - euler).max() > 8


@pytest.mark.parametrize(("base", "name"), [("tiny-unet", "flow"), ("tiny-dit", "ddim")])
def test_a_sampler_of_another_kind_of_model_is_refused(painters, base, name):
    with pytest.raises(ConfigError, match="no sampler") as caught:
        painters[base].draw(PROMPTS, options(name), "x")
    assert "euler" in str(caught.value)
