"""The contract of a family, against the published pipeline itself. A new family is one more row in `ROWS`."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from lorakit import families
from lorakit.families import FAMILIES, Family
from tests import oracle, tiny

ROWS = ["sd15", "sd15-v", "sd3", "sd3-no-t5", "sd35", "flux2-dev", "flux2-klein"]
SIZES = [(64, 32), (32, 48)]  # pixels
CAPTIONS = ["a photo of a red circle", "small"]
MODULES = {  # adapted modules of the tiny pipelines, counted from their configurations
    "sd15": 4 * 2 * 4,  # (1 down + 1 mid + 2 up) blocks x 2 attentions x 4
    "sd15-v": 4 * 2 * 4,
    "sd3": 8 + 7,  # the last block has no text output
    "sd3-no-t5": 8 + 7,
    "sd35": 8 + 7 + 4,  # one dual block: a second attention over the picture
    "flux2-dev": 8 + 2 * 2,
    "flux2-klein": 8 + 2 * 2,
}


def family_of(name: str) -> Family:
    return families.find(tiny.tiny_folder(name))


def times(family: Family) -> torch.Tensor:
    return torch.tensor([321, 987]) if family.objective == "ddpm" else torch.tensor([123.4, 876.5])


def noise_for(family: Family, name: str, size: tuple[int, int], rows: int = 1, seed: int = 1) -> torch.Tensor:
    shape = family.latent_shape(tiny.tiny_pipeline(name), *size)
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def test_every_pipeline_of_every_family_has_a_row():
    covered = {type(tiny.tiny_pipeline(name)).__name__ for name in ROWS}
    assert covered == {pipeline for family in FAMILIES for pipeline in family.pipelines}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_predict_equals_the_pipeline(name, size):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise = noise_for(family, name, size)
    cond = family.collate(family.encode(pipe, CAPTIONS[:1]))
    for t in times(family):
        with torch.no_grad():
            expected = oracle.prediction(pipe, CAPTIONS[0], noise, t, *size)
            ours = family.predict(family.denoiser(pipe), noise, t[None], cond)
        assert expected.abs().max() > 0.01
        assert (ours - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ROWS)
def test_batch_of_two_equals_two_singles(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise, t = noise_for(family, name, SIZES[0], rows=2), times(family)
    conds = family.encode(pipe, CAPTIONS)
    with torch.no_grad():
        both = family.predict(family.denoiser(pipe), noise, t, family.collate(conds))
        for i in range(2):
            one = family.predict(
                family.denoiser(pipe), noise[i, None], t[i, None], family.collate(conds[i : i + 1])
            )
            assert (both[i] - one[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ROWS)
def test_every_input_matters(name):
    """Or the oracle could agree about constants: time, caption and noise must move the prediction."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    t, noise = times(family), noise_for(family, name, SIZES[0])
    first, second = (family.collate([cond]) for cond in family.encode(pipe, CAPTIONS))
    model = family.denoiser(pipe)
    with torch.no_grad():
        base = family.predict(model, noise, t[:1], first)
        others = [
            family.predict(model, noise, t[1:], first),
            family.predict(model, noise, t[:1], second),
            family.predict(model, noise.flip(-1), t[:1], first),
        ]
    assert all((other - base).abs().max() > 1e-4 for other in others)


@pytest.mark.parametrize("name", ROWS)
def test_conditions_are_the_pipelines_arguments(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    captions = list(CAPTIONS)
    conds = family.encode(pipe, captions)
    assert captions == CAPTIONS
    assert len(conds) == 2
    assert set(conds[0]) <= set(inspect.signature(type(pipe).__call__).parameters)
    assert family.encode(pipe, []) == []
    alone = family.encode(pipe, CAPTIONS[1:])[0]
    for key, value in conds[1].items():
        assert not value.requires_grad
        assert (value - alone[key]).abs().max() <= 1e-5


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", ROWS)
def test_sample_equals_the_pipeline_called_with_text(name, guidance):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    size = SIZES[1]
    noise = noise_for(family, name, size, rows=2)
    negative = family.collate(family.encode(pipe, [""]))
    cond = family.collate(family.encode(pipe, CAPTIONS))
    settings = {"width": size[0], "height": size[1]}
    ours = family.sample(pipe, cond, negative, noise, steps=3, guidance=guidance, **settings)
    theirs = pipe(
        prompt=CAPTIONS, latents=noise.clone(), num_inference_steps=3, guidance_scale=guidance, **settings
    ).images
    assert [picture.size for picture in ours] == [size, size]
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in theirs]
    assert ours[0].tobytes() != ours[1].tobytes()


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux2-klein"])
def test_guidance_needs_a_negative(name):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    cond = family.collate(family.encode(pipe, CAPTIONS[:1]))
    noise = noise_for(family, name, SIZES[0])
    for guidance in (2.0, None):  # None is the pipeline's default, which guides
        with pytest.raises(ValueError, match="needs the negative condition"):
            family.sample(pipe, cond, None, noise, steps=1, guidance=guidance, width=64, height=32)


def test_a_sampler_that_draws_noise_is_independent_of_the_batch():
    from diffusers import EulerAncestralDiscreteScheduler

    family, pipe = family_of("sd15"), tiny.build("sd15")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    noise = noise_for(family, "sd15", SIZES[0], rows=2)
    conds = family.encode(pipe, CAPTIONS)
    options = {"steps": 4, "guidance": 1.0, "width": SIZES[0][0], "height": SIZES[0][1]}
    torch.manual_seed(5)
    both = family.sample(pipe, family.collate(conds), None, noise, **options)
    state = torch.get_rng_state()
    alone = family.sample(pipe, family.collate(conds[1:]), None, noise[1:], **options)
    assert torch.equal(state, torch.get_rng_state()), "sampling must not draw from the global generator"
    difference = max(abs(a - b) for a, b in zip(both[1].tobytes(), alone[0].tobytes(), strict=True))
    assert difference <= 1  # convolutions of another batch size round differently


@pytest.mark.parametrize("name", ROWS)
def test_targets_reach_every_attention_projection(name):
    """peft's own matching, and no attention layer of the denoiser left out."""
    from peft import LoraConfig, inject_adapter_in_model

    family, pipe = family_of(name), tiny.build(name)
    model = family.denoiser(pipe)
    config = LoraConfig(r=2, target_modules=family.targets)
    inject_adapter_in_model(config, model)
    adapted = {key.rsplit(".lora_A", 1)[0] for key, _ in model.named_parameters() if ".lora_A." in key}
    linear = {
        key.removesuffix(".base_layer")
        for key, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.search(r"\.attn[12]?\.", key) and ".lora_" not in key
    }
    assert adapted == linear
    assert len(adapted) == MODULES[name]


@pytest.mark.parametrize("name", ROWS)
def test_gradients_reach_the_adapter(name):
    from peft import LoraConfig, inject_adapter_in_model

    family, pipe = family_of(name), tiny.build(name)
    model = family.denoiser(pipe)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=family.targets, init_lora_weights=False), model)
    noise = noise_for(family, name, SIZES[0])
    cond = family.collate(family.encode(pipe, CAPTIONS[:1]))
    family.predict(model, noise, times(family)[:1], cond).square().mean().backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if "lora_" in key}
    dead = {key for key, grad in gradients.items() if grad is None or not grad.any()}
    # SD3's last block throws its text stream away before the output: its text query is never used
    assert all("add_q_proj" in key for key in dead), dead
    assert len(dead) < len(gradients) / 4


def test_describe_lists_every_family():
    rows = [family.describe() for family in FAMILIES]
    assert [row["name"] for row in rows] == ["sd15", "sd3", "flux2"]
    assert all(row["targets"] and row["title"] and row["pipelines"] for row in rows)
