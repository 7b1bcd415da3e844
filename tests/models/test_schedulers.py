"""Samplers by name sample as well as the published one, and leave the pipeline unchanged."""

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
    for base, objective in (("tiny-unet", "ddpm"), ("tiny-dit", "flow"))
    for name in schedulers.SAMPLERS[objective]
]


@pytest.fixture(scope="module")
def pipelines() -> dict[str, pipeline.SamplingPipeline]:
    return {base: pipeline.SamplingPipeline(base) for base in base_model.EMBEDDED_BASES}


@pytest.fixture(scope="module")
def clip() -> clip_score.ClipScorer:
    return clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)


def options(sampler: str | None) -> pipeline.SamplingOptions:
    return pipeline.SamplingOptions(
        num_inference_steps=12, guidance_scale=4.0, size=(64, 64), quiet=True, sampler=sampler
    )


@pytest.fixture(scope="module")
def published_scores(pipelines, clip) -> dict[str, float]:
    """CLIP-T with each base model's published sampler."""
    return {base: _score(pipe, clip, None) for base, pipe in pipelines.items()}


def _score(sampling_pipeline, clip, sampler) -> float:
    samples = sampling_pipeline.sample(PROMPTS, options(sampler), "samples")
    return clip.clip_t([sample.image for sample in samples], TEXTS).mean()


@pytest.mark.parametrize(("base", "name"), CASES)
def test_every_sampler_follows_the_prompts(pipelines, clip, published_scores, base, name):
    published = pipelines[base].pipe.scheduler
    score = _score(pipelines[base], clip, name)
    assert pipelines[base].pipe.scheduler is published
    assert score > published_scores[base] - 0.08  # samplers that add noise need more steps


def test_another_sampler_gives_another_image_from_the_same_noise(pipelines):
    sampling_pipeline = pipelines["tiny-unet"]
    ddim, euler, again = (
        np.asarray(sampling_pipeline.sample(PROMPTS[:1], options(name), "x")[0].image, np.int16)
        for name in ("ddim", "euler-a", "ddim")
    )
    assert np.abs(ddim - again).max() == 0
    assert np.abs(ddim - euler).max() > 8


@pytest.mark.parametrize(("base", "name"), [("tiny-unet", "flow"), ("tiny-dit", "ddim")])
def test_a_sampler_of_another_objective_is_refused(pipelines, base, name):
    with pytest.raises(ConfigError, match="no sampler") as caught:
        pipelines[base].sample(PROMPTS, options(name), "x")
    assert "euler" in str(caught.value)
