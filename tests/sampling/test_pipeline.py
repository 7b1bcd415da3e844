"""The sampling pipeline on the embedded base models, and its arguments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import adapters
from lorakit.adapters.sources import parse_adapter_source
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt, Sample
from lorakit.models import base_model, families, memory
from lorakit.models.memory.quantized_layers import QuantizedLinear
from lorakit.sampling import generate, pipeline
from tests import runs

PROMPTS = [
    Prompt("a", "a red circle on a blue background", "a red circle", seeds=(0, 1)),
    Prompt("b", "a green ring", "a green ring", seeds=(5,)),
]
FAST = pipeline.SamplingOptions(num_inference_steps=3, guidance_scale=3.0, quiet=True)
SMALL = replace(FAST, size=(64, 64))


def pixels(samples: list[Sample]) -> list[np.ndarray]:
    return [np.asarray(s.image, np.int16) for s in samples]


@pytest.fixture(scope="module", params=base_model.EMBEDDED_BASES)
def sampling(request) -> pipeline.SamplingPipeline:
    return pipeline.SamplingPipeline(request.param)


def test_an_image_depends_on_prompt_and_seed_not_on_the_batch_size(sampling):
    options = [
        pipeline.SamplingOptions(
            num_inference_steps=3, guidance_scale=3.0, size=(64, 64), batch_size=b, quiet=True
        )
        for b in (1, 3)
    ]
    single, batched = (pixels(sampling.sample(PROMPTS, o, "x")) for o in options)
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(single, batched, strict=True))
    assert np.abs(single[0] - single[1]).max() > 1
    alone = pixels(sampling.sample(PROMPTS[1:], options[0], "x"))
    assert np.abs(alone[0] - single[2]).max() <= 1


def test_batches_are_halved_when_memory_runs_out(sampling, monkeypatch):
    prompt = Prompt("a", "a red circle", "a red circle", seeds=tuple(range(7)))
    options = replace(SMALL, num_inference_steps=2, batch_size=7)
    whole, sample_batch, tried = pixels(sampling.sample([prompt], options, "x")), generate._sample_batch, []

    def batch(family, pipe, encoded, settings, jobs):
        tried.append(len(jobs))
        if len(jobs) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample_batch(family, pipe, encoded, settings, jobs)

    monkeypatch.setattr(generate, "_sample_batch", batch)
    fits = 2
    fewer = sampling.sample([prompt], options, "x")
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [sample.seed for sample in fewer] == list(range(7))
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(whole, pixels(fewer), strict=True))
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        sampling.sample([prompt], options, "x")


@pytest.mark.parametrize("quantize", ["nf4", "int8", "fp8"])
def test_a_quantized_base_model_samples_nearly_the_same(quantize):
    whole = pixels(pipeline.SamplingPipeline("tiny-dit").sample(PROMPTS, SMALL, "x"))
    small = pipeline.SamplingPipeline("tiny-dit", quantize=quantize)
    assert any(isinstance(m, QuantizedLinear) for m in small.denoiser.modules())
    sampled = pixels(small.sample(PROMPTS, SMALL, "x"))
    assert 0 < max(np.abs(a - b).mean() for a, b in zip(whole, sampled, strict=True)) < 12


def test_text_encoders_are_in_memory_only_while_they_encode(monkeypatch):
    loaded, family_class = [], type(families.detect_family(base_model.resolve_base("tiny-dit")))
    load_original = family_class.load

    def load(self, folder, *, only=None, **options):
        loaded.append(sorted(only))
        return load_original(self, folder, only=only, **options)

    monkeypatch.setattr(family_class, "load", load)
    sampling = pipeline.SamplingPipeline("tiny-dit")
    options = replace(SMALL, num_inference_steps=1)
    for _ in range(2):
        sampling.sample(PROMPTS, options, "x")
    assert len(loaded) == 2  # the denoiser, then the text encoders: embeddings are reused
    assert not any(part.startswith(("text_", "tokenizer")) for part in loaded[0])
    assert all(part.startswith(("text_", "tokenizer")) for part in loaded[1])
    assert sampling.pipe.text_encoder is None


def test_sizes_must_be_multiples_that_the_base_model_supports(sampling):
    with pytest.raises(ConfigError, match="multiples"):
        sampling.sample(PROMPTS, pipeline.SamplingOptions(size=(65, 64)), "x")
    assert pipeline.parse_size("640x512") == (640, 512)
    with pytest.raises(ConfigError, match="--size"):
        pipeline.parse_size("640")


def test_a_prompt_has_its_own_size_steps_and_guidance(sampling, capsys):
    plain = Prompt("a", "a red circle", "a red circle", seeds=(0, 1))
    prompts = [
        plain,
        replace(plain, id="b", width=96, height=50, seeds=(0,)),
        replace(plain, id="c", num_inference_steps=1, seeds=(0,)),
        replace(plain, id="d", aspect_ratio=1.5, guidance_scale=1.0, seeds=(0,)),
    ]
    samples = sampling.sample(prompts, SMALL, "x")
    multiple = sampling.family.size_multiple(sampling.pipe)
    height = round(50 / multiple) * multiple
    assert [s.prompt.id for s in samples] == ["a", "a", "b", "c", "d"]
    assert [s.image.size for s in samples][:4] == [(64, 64), (64, 64), (96, height), (64, 64)]
    assert f"rounded from 96x50 to 96x{height}" in "".join(capsys.readouterr())
    width, high = samples[4].image.size
    assert width > high
    assert abs(width * high / 64**2 - 1) < 0.3
    options = replace(SMALL, num_inference_steps=1)
    (alone,) = sampling.sample([replace(plain, id="c", seeds=(0,))], options, "x")
    assert np.abs(pixels([alone])[0] - pixels(samples)[3]).max() <= 1


EXPORTS = {"tiny-unet": ["comfyui", "a1111", "diffusers"], "tiny-dit": ["comfyui", "diffusers"]}


def trained(base: str, folder: Path) -> Path:
    data = runs.make_dataset(folder / "data", 3)
    prompts = runs.make_prompts(folder / "p.jsonl")
    recipe = runs.make_recipe(
        folder / "r.yaml",
        base,
        data,
        folder / "run",
        samples={"prompts": str(prompts), "every": 100, "num_inference_steps": 2},
        optimizer={"lr": 1e-2},
        export=EXPORTS[base],
    )
    return runs.train(recipe)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained("tiny-unet", tmp_path_factory.mktemp("sampling"))


def test_sampling_with_an_adapter_and_a_strength(run, tmp_path):
    images = {}
    for strength in ("0", "1"):
        out = tmp_path / strength
        pipeline.sample_to_folder(out, "tiny-unet", f"{run}:{strength}", run.parent / "p.jsonl", FAST)
        images[strength] = np.asarray(Image.open(out / "a-0.png"), np.int16)
        assert len(storage.read_json(out / "samples.json")) == 3
    plain = pipeline.sample_to_folder(
        tmp_path / "plain",
        "tiny-unet",
        None,
        run.parent / "p.jsonl",
        SMALL,
    )
    assert np.abs(np.asarray(Image.open(plain[0]), np.int16) - images["0"]).max() <= 1
    assert np.abs(images["1"] - images["0"]).max() > 1


def test_an_adapter_of_another_family_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="family sd15, this base model sd3"):
        pipeline.sample_to_folder(tmp_path, "tiny-dit", str(run), run.parent / "p.jsonl", FAST)


@pytest.mark.parametrize("argument", ["nowhere.safetensors", "nowhere:0.5"])
def test_a_missing_adapter_is_an_error(argument):
    with pytest.raises(ConfigError, match="no such adapter"):
        parse_adapter_source(argument)


def test_a_loaded_base_model_can_change_to_another_checkpoint(run):
    """Another checkpoint, another strength and no adapter give the images of a newly loaded base model."""
    early, late = (run / f"checkpoints/step-{step:08d}/adapter.safetensors" for step in (4, 12))
    sampling = pipeline.SamplingPipeline("tiny-unet", early)
    sampled = {}
    for file, strength in ((late, 1.0), (early, 0.5), (early, 1.0)):
        sampling.load_adapter(file, strength)
        fresh = pipeline.SamplingPipeline("tiny-unet", file, strength)
        sampled[file, strength] = pixels(sampling.sample(PROMPTS, FAST, "x"))
        own = pixels(fresh.sample(PROMPTS, FAST, "x"))
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(sampled[file, strength], own, strict=True))
    assert np.abs(sampled[late, 1.0][0] - sampled[early, 1.0][0]).max() > 1
    with adapters.adapters_disabled(sampling.denoiser):
        off = pixels(sampling.sample(PROMPTS, FAST, "x"))
    plain = pipeline.SamplingPipeline("tiny-unet").sample(PROMPTS, SMALL, "x")
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(off, pixels(plain), strict=True))


def test_prompts_are_encoded_once(sampling, monkeypatch):
    encoded = []
    encode_text = type(sampling.family).encode_text

    def encode(self, pipe, captions, *rest):
        encoded.extend(captions)
        return encode_text(self, pipe, captions, *rest)

    monkeypatch.setattr(type(sampling.family), "encode_text", encode)
    options = replace(SMALL, num_inference_steps=2)
    new = [Prompt("c", "a pink cross seen from above", "x", seeds=(0, 1))]
    for _ in range(2):
        sampling.sample([*PROMPTS, *new], options, "x")
    assert encoded.count(new[0].prompt) == 1


@pytest.mark.parametrize("base", base_model.EMBEDDED_BASES)
def test_an_exported_adapter_loads_in_diffusers_and_gives_the_same_images(base, tmp_path):
    """The finished adapter loaded by lorakit, the exported file by diffusers on a new pipeline."""
    run = trained(base, tmp_path)
    by_lorakit, by_diffusers, without = (
        pipeline.SamplingPipeline(base, run / "adapter.safetensors"),
        pipeline.SamplingPipeline(base),
        pipeline.SamplingPipeline(base),
    )
    (file,) = (run / "exports").glob("*.safetensors")
    by_diffusers.pipe.load_lora_weights(str(file))
    sampled = [pixels(one.sample(PROMPTS, SMALL, "x")) for one in (by_lorakit, by_diffusers, without)]
    assert max(np.abs(a - b).max() for a, b in zip(sampled[0], sampled[1], strict=True)) <= 1
    assert max(np.abs(a - b).max() for a, b in zip(sampled[0], sampled[2], strict=True)) > 1


@pytest.mark.parametrize("base", base_model.EMBEDDED_BASES)
def test_a_streamed_base_model_samples_the_same_images(base):
    whole = pixels(pipeline.SamplingPipeline(base).sample(PROMPTS, SMALL, "x"))
    streamed = pipeline.SamplingPipeline(base, stream=1.0)
    assert all(
        np.array_equal(a, b) for a, b in zip(whole, pixels(streamed.sample(PROMPTS, SMALL, "x")), strict=True)
    )
    ring = memory.placement.placement_of(streamed.denoiser).ring
    assert ring.transfers > 0
    assert 0 < ring.peak_bytes < sum(block.size for block in ring.blocks)
