"""The contract of a family, against the published pipeline itself. A new family is one more row of `tiny`."""

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
    noise_for,
    pictures_for,
    times,
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
        for t in times(family):
            with torch.no_grad():
                expected = oracle.prediction(
                    name, pipe, CAPTIONS[0], noise, t, *size, pictures_for(name, size)
                )
                ours = family.predict(family.denoiser(pipe), noise, t[None], cond)
            assert ours.shape == expected.shape == noise.shape
            assert expected.abs().max() > 0.01
            assert (ours - expected).abs().max() <= 1e-6


@all_rows
def test_times_are_noise_levels(name, monkeypatch):
    """The one thing that the oracle's stub hides: a real run shows the model, at each of its scheduler's
    noise levels, the time that `predict` is given there."""
    family, pipe, row = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name]
    if family.objective != "flow":
        pytest.skip("times of a ddpm model are steps")
    size, noise, seen = row.sizes[1], noise_for(name, row.sizes[1]), []
    step = type(pipe.scheduler).step

    def recorded(scheduler, output, t, *inputs, **options):
        result = step(scheduler, output, t, *inputs, **options)
        if scheduler is pipe.scheduler:  # and not a copy of it, for sound
            seen.append((t.item(), pipe.scheduler.sigmas[pipe.scheduler.step_index - 1].item()))
        return result

    monkeypatch.setattr(type(pipe.scheduler), "step", recorded)
    settings = {"width": size[0], "height": size[1], "num_inference_steps": 3, **row.call, **row.off}
    settings |= row.shown(pictures_for(name, size)) if row.shown else {}
    with oracle.plain(pipe, size):
        row.draw(pipe, prompt=CAPTIONS[:1], latents=row.given(pipe, noise), **settings)
    assert len(seen) == 3
    for t, sigma in seen:
        level = torch.tensor(1000 * sigma, dtype=torch.float64)
        assert row.clock(pipe, level, noise).item() == pytest.approx(t, abs=0.01)


@all_rows
def test_batch_of_two_equals_two_singles(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise, t = noise_for(name, rows=2), times(family)
    conds = encoded(name)
    model = family.denoiser(pipe)
    with torch.no_grad():
        both = family.predict(model, noise, t, family.collate(conds))
        for i in range(2):
            one = family.predict(model, noise[i, None], t[i, None], family.collate(conds[i : i + 1]))
            assert (both[i] - one[0]).abs().max() <= 1e-5


@all_rows
def test_every_input_matters(name):
    """Or the oracle could agree about constants: time, caption and noise must move the prediction."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    t, noise = times(family), noise_for(name)
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
def test_conditions_are_the_pipelines_arguments(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    captions = list(CAPTIONS)
    conds = encoded(name, captions)
    assert captions == CAPTIONS
    assert len(conds) == 2
    accepted = set(inspect.signature(type(pipe).__call__).parameters)
    replayed = type(family)._run is not Family._run  # through the pipeline's `encode_prompt`
    assert replayed or set(family._arguments(pipe, family.collate(conds))) <= accepted
    assert family.encode(pipe, [], None, pictures_for(name)) == []
    alone = (
        encoded(name, CAPTIONS[:1] + CAPTIONS[1:])[1]
        if tiny.ROWS[name].shown
        else encoded(name, CAPTIONS[1:])[0]
    )
    for key, value in conds[1].items():
        assert not value.requires_grad
        assert torch.equal(value, alone[key])


def _pictures(name, guidance):
    """Two pictures by `sample`, and the same by the pipeline called with text."""
    family, pipe, row = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name]
    size = row.sizes[1]
    noise = noise_for(name, size, rows=2)
    negative = family.collate(encoded(name, ["", ""] if row.shown else [""], size))
    cond = family.collate(encoded(name, CAPTIONS, size))
    settings = {"width": size[0], "height": size[1]}
    value = family.unguided if guidance is None else guidance
    with oracle.plain(pipe, size):
        ours = family.sample(pipe, cond, negative, noise, steps=3, guidance=value, **settings)
    settings |= row.call | (row.off if guidance is None else row.on) | {"num_inference_steps": 3}
    theirs = []
    for some in [slice(0, 1), slice(1, 2)] if row.alone or row.shown else [slice(0, 2)]:
        generators = [torch.Generator().manual_seed(i) for i in range(2)][some]
        given = {"latents": row.given(pipe, noise[some].clone()), "generator": generators}
        given |= row.shown(pictures_for(name, size, some.start)) if row.shown else {}
        with oracle.plain(pipe, size):
            theirs += row.draw(pipe, prompt=CAPTIONS[some], **(given | settings))
    return size, ours, theirs


@pytest.mark.parametrize("guidance", [None, 4.0], ids=["plain", "guided"])
@all_rows
def test_sample_equals_the_pipeline_called_with_text(name, guidance):
    if guidance and tiny.ROWS[name].on is None:
        pytest.skip("this model has no guidance")
    size, ours, theirs = _pictures(name, guidance)
    assert [picture.size for picture in ours] == [size, size]
    for mine, other in zip(ours, theirs, strict=True):
        difference = max(abs(a - b) for a, b in zip(mine.tobytes(), other.tobytes(), strict=True))
        assert difference <= 1
    assert ours[0].tobytes() != ours[1].tobytes()


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux2-klein"])
def test_guidance_needs_a_negative(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    cond = family.collate(family.encode(pipe, CAPTIONS[:1]))
    noise = noise_for(name)
    for guidance in (2.0, None):  # None is the pipeline's default, which guides
        with pytest.raises(ValueError, match="needs the negative condition"):
            family.sample(pipe, cond, None, noise, steps=1, guidance=guidance, width=64, height=32)


def test_a_sampler_that_draws_noise_is_independent_of_the_batch():
    from diffusers import EulerAncestralDiscreteScheduler

    family, pipe = family_of("sd15"), tiny.build("sd15")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    noise = noise_for("sd15", rows=2)
    conds = family.encode(pipe, CAPTIONS)
    width, height = tiny.ROWS["sd15"].sizes[0]
    options = {"steps": 4, "guidance": 1.0, "width": width, "height": height}
    torch.manual_seed(5)
    both = family.sample(pipe, family.collate(conds), None, noise, **options)
    state = torch.get_rng_state()
    alone = family.sample(pipe, family.collate(conds[1:]), None, noise[1:], **options)
    assert torch.equal(state, torch.get_rng_state()), "sampling must not draw from the global generator"
    difference = max(abs(a - b) for a, b in zip(both[1].tobytes(), alone[0].tobytes(), strict=True))
    assert difference <= 1  # convolutions of another batch size round differently


def test_describe_lists_every_family():
    rows = [family.describe() for family in FAMILIES]
    names = [row["name"] for row in rows]
    assert names == sorted(set(names))
    assert all(row[key] for row in rows for key in ("targets", "title", "pipelines", "licence", "objective"))
