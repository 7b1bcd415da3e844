"""The contract of a family, compared with the published pipeline. A new family is one more row of `tiny`."""

from __future__ import annotations

import inspect

import pytest
import torch

from lorakit.models.families import FAMILIES, Family
from tests import oracle, tiny
from tests.models.families.common import (
    CAPTIONS,
    all_rows,
    encoded,
    family_of,
    images_for,
    noise_for,
    two_timesteps,
)


def test_every_pipeline_of_every_family_has_a_row():
    covered = {type(tiny.tiny_pipeline(name)).__name__ for name in tiny.ROWS}
    assert covered == {pipeline for family in FAMILIES for pipeline in family.pipelines}


@all_rows
def test_predict_equals_the_pipeline(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    for size in tiny.ROWS[name].sizes:
        noise = noise_for(name, size)
        cond = family.collate(encoded(name, CAPTIONS[:1], size))
        for t in two_timesteps(family):
            with torch.no_grad():
                expected = oracle.prediction(name, pipe, CAPTIONS[0], noise, t, *size, images_for(name, size))
                ours = family.predict(family.denoiser(pipe), noise, t[None], cond)
            assert ours.shape == expected.shape == noise.shape
            assert expected.abs().max() > 0.01
            # conditioning latents are encoded in another batch: fp32 rounding that differs between processors
            bound = 2e-6 if tiny.ROWS[name].image_arguments else 1e-6
            assert (ours - expected).abs().max() <= bound


@all_rows
def test_a_real_run_gives_the_network_the_timestep_of_each_sigma(name, monkeypatch):
    """The one thing that the oracle's stub hides: at each of its scheduler's sigmas, a real run gives the
    network the timestep that `predict` gets there."""
    family, pipe, row = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name]
    if family.objective != "flow":
        pytest.skip("timesteps of a ddpm model are integer steps")
    size, noise, steps = row.sizes[1], noise_for(name, row.sizes[1]), []
    step = type(pipe.scheduler).step

    def recorded(scheduler, output, t, *inputs, **options):
        result = step(scheduler, output, t, *inputs, **options)
        if scheduler is pipe.scheduler:  # and not a copy of it for sound
            steps.append((t.item(), pipe.scheduler.sigmas[pipe.scheduler.step_index - 1].item()))
        return result

    monkeypatch.setattr(type(pipe.scheduler), "step", recorded)
    settings = {
        "width": size[0],
        "height": size[1],
        "num_inference_steps": 3,
        **row.call_arguments,
        **row.guidance_off,
    }
    settings |= row.image_arguments(images_for(name, size)) if row.image_arguments else {}
    with oracle.deterministic_inputs(pipe, size):
        row.sample(pipe, prompt=CAPTIONS[:1], latents=row.latents_argument(pipe, noise), **settings)
    assert len(steps) == 3
    for t, sigma in steps:
        level = torch.tensor(1000 * sigma, dtype=torch.float64)
        assert row.timestep(pipe, level, noise).item() == pytest.approx(t, abs=0.01)


@all_rows
def test_batch_of_two_equals_two_singles(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise, t = noise_for(name, rows=2), two_timesteps(family)
    conds = encoded(name)
    model = family.denoiser(pipe)
    with torch.no_grad():
        both = family.predict(model, noise, t, family.collate(conds))
        for i in range(2):
            one = family.predict(model, noise[i, None], t[i, None], family.collate(conds[i : i + 1]))
            assert (both[i] - one[0]).abs().max() <= 1e-5


@all_rows
def test_every_input_matters(name):
    """Otherwise the oracle could agree about constants: timestep, caption and noise change the prediction."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    t, noise = two_timesteps(family), noise_for(name)
    first, second = (family.collate([cond]) for cond in encoded(name))
    model = family.denoiser(pipe)
    with torch.no_grad():
        base = family.predict(model, noise, t[:1], first)
        others = [
            family.predict(model, noise, t[1:], first),
            family.predict(model, noise, t[:1], second),
            family.predict(model, noise.flip(-1), t[:1], first),
        ]
    assert all((other - base).abs().max() > 1e-4 for other in others)


@all_rows
def test_embeddings_are_arguments_of_the_pipelines_call(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    captions = list(CAPTIONS)
    conds = encoded(name, captions)
    assert captions == CAPTIONS
    assert len(conds) == 2
    accepted = set(inspect.signature(type(pipe).__call__).parameters)
    # some replace the pipeline's `encode_prompt` instead
    overrides_call = type(family)._call_pipeline is not Family._call_pipeline
    assert overrides_call or set(family._text_arguments(pipe, family.collate(conds))) <= accepted
    assert family.encode_text(pipe, [], None, images_for(name)) == []
    single = (
        encoded(name, CAPTIONS[:1] + CAPTIONS[1:])[1]
        if tiny.ROWS[name].image_arguments
        else encoded(name, CAPTIONS[1:])[0]
    )
    for key, value in conds[1].items():
        assert not value.requires_grad
        assert torch.equal(value, single[key])


def _images(name, guidance):
    """(size, two images of `sample`, the same of the pipeline called with text)."""
    family, pipe, row = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name]
    size = row.sizes[1]
    noise = noise_for(name, size, rows=2)
    negative = family.collate(encoded(name, ["", ""] if row.image_arguments else [""], size))
    cond = family.collate(encoded(name, CAPTIONS, size))
    settings = {"width": size[0], "height": size[1]}
    value = family.call.guidance_off if guidance is None else guidance
    with oracle.deterministic_inputs(pipe, size):
        ours = family.sample(
            pipe, cond, negative, noise, num_inference_steps=3, guidance_scale=value, **settings
        )
    settings |= (
        row.call_arguments
        | (row.guidance_off if guidance is None else row.guidance_on)
        | {"num_inference_steps": 3}
    )
    theirs = []
    for some in (
        [slice(0, 1), slice(1, 2)] if row.one_prompt_per_call or row.image_arguments else [slice(0, 2)]
    ):
        generators = [torch.Generator().manual_seed(i) for i in range(2)][some]
        arguments = {"latents": row.latents_argument(pipe, noise[some].clone()), "generator": generators}
        arguments |= row.image_arguments(images_for(name, size, some.start)) if row.image_arguments else {}
        with oracle.deterministic_inputs(pipe, size):
            theirs += row.sample(pipe, prompt=CAPTIONS[some], **(arguments | settings))
    return size, ours, theirs


@pytest.mark.parametrize("guidance", [None, 4.0], ids=["plain", "guided"])
@all_rows
def test_sample_equals_the_pipeline_called_with_text(name, guidance):
    if guidance and tiny.ROWS[name].guidance_on is None:
        pytest.skip("this model has no guidance")
    size, ours, theirs = _images(name, guidance)
    assert [image.size for image in ours] == [size, size]
    for mine, other in zip(ours, theirs, strict=True):
        difference = max(abs(a - b) for a, b in zip(mine.tobytes(), other.tobytes(), strict=True))
        assert difference <= 1
    assert ours[0].tobytes() != ours[1].tobytes()


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux2-klein"])
def test_guidance_needs_a_negative(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    cond = family.collate(family.encode_text(pipe, CAPTIONS[:1]))
    noise = noise_for(name)
    for guidance in (2.0, None):  # None is the pipeline's default, which is above 1
        with pytest.raises(ValueError, match="needs negative embeddings"):
            family.sample(
                pipe, cond, None, noise, num_inference_steps=1, guidance_scale=guidance, width=64, height=32
            )


def test_a_sampler_that_adds_noise_is_independent_of_the_batch():
    from diffusers import EulerAncestralDiscreteScheduler

    family, pipe = family_of("sd15"), tiny.build("sd15")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    noise = noise_for("sd15", rows=2)
    conds = family.encode_text(pipe, CAPTIONS)
    width, height = tiny.ROWS["sd15"].sizes[0]
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "width": width, "height": height}
    torch.manual_seed(5)
    both = family.sample(pipe, family.collate(conds), None, noise, **options)
    state = torch.get_rng_state()
    single = family.sample(pipe, family.collate(conds[1:]), None, noise[1:], **options)
    assert torch.equal(state, torch.get_rng_state()), "sampling must not use the global generator"
    difference = max(abs(a - b) for a, b in zip(both[1].tobytes(), single[0].tobytes(), strict=True))
    assert difference <= 1  # convolutions of another batch size round differently


def test_describe_lists_every_family():
    rows = [family.describe() for family in FAMILIES]
    names = [row["name"] for row in rows]
    assert names == sorted(set(names))
    assert all(row[key] for row in rows for key in ("targets", "title", "pipelines", "license", "objective"))
