"""Sampling and comparing on the embedded bases, and what they ask of their arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import adapters
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt, Sample
from lorakit.models import base_model, families
from lorakit.sampling import generate, pipeline
from tests import runs

PROMPTS = [
    Prompt("a", "a red circle on a blue background", "a red circle", seeds=(0, 1)),
    Prompt("b", "a green ring", "a green ring", seeds=(5,)),
]
FAST = pipeline.SamplingOptions(steps=3, guidance=3.0, quiet=True)


def pixels(samples: list[Sample]) -> list[np.ndarray]:
    return [np.asarray(s.image, np.int16) for s in samples]


@pytest.fixture(scope="module", params=base_model.EMBEDDED_BASES)
def painter(request) -> pipeline.SamplingPipeline:
    return pipeline.SamplingPipeline(request.param)


def test_a_picture_depends_on_prompt_and_seed_not_on_the_batch(painter):
    options = [
        pipeline.SamplingOptions(steps=3, guidance=3.0, size=(64, 64), batch=b, quiet=True) for b in (1, 3)
    ]
    one, three = (pixels(painter.draw(PROMPTS, o, "x")) for o in options)
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(one, three, strict=True))
    assert np.abs(one[0] - one[1]).max() > 1
    alone = pixels(painter.draw(PROMPTS[1:], options[0], "x"))
    assert np.abs(alone[0] - one[2]).max() <= 1


def test_where_memory_is_short_fewer_pictures_are_drawn_at_once(painter, monkeypatch):
    prompt = Prompt("a", "a red circle", "a red circle", seeds=tuple(range(7)))
    options = pipeline.SamplingOptions(steps=2, guidance=3.0, size=(64, 64), batch=7, quiet=True)
    whole, plain, tried = pixels(painter.draw([prompt], options, "x")), generate._sample_batch, []

    def batch(family, pipe, encoded, settings, jobs):
        tried.append(len(jobs))
        if len(jobs) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(family, pipe, encoded, settings, jobs)

    monkeypatch.setattr(generate, "_sample_batch", batch)
    fits = 2
    fewer = painter.draw([prompt], options, "x")
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [shot.seed for shot in fewer] == list(range(7))
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(whole, pixels(fewer), strict=True))
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        painter.draw([prompt], options, "x")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_base_in_few_bits_draws_nearly_the_same(kind):
    options = pipeline.SamplingOptions(steps=3, guidance=3.0, size=(64, 64), quiet=True)
    whole = pixels(pipeline.SamplingPipeline("tiny-dit").draw(PROMPTS, options, "x"))
    small = pipeline.SamplingPipeline("tiny-dit", quantize=kind)
    assert any("bitsandbytes" in type(m).__module__ for m in small.denoiser.modules())
    drawn = pixels(small.draw(PROMPTS, options, "x"))
    assert 0 < max(np.abs(a - b).mean() for a, b in zip(whole, drawn, strict=True)) < 12


def test_text_encoders_are_in_memory_only_while_they_encode(monkeypatch):
    loaded, kind = [], type(families.detect_family(base_model.resolve_base("tiny-dit")))
    plain = kind.load

    def load(self, folder, *, only=None, **options):
        loaded.append(sorted(only))
        return plain(self, folder, only=only, **options)

    monkeypatch.setattr(kind, "load", load)
    painter = pipeline.SamplingPipeline("tiny-dit")
    options = pipeline.SamplingOptions(steps=1, guidance=3.0, size=(64, 64), quiet=True)
    for _ in range(2):
        painter.draw(PROMPTS, options, "x")
    assert len(loaded) == 2  # what draws, and once what encodes: the texts were known the second time
    assert not any(part.startswith(("text_", "tokenizer")) for part in loaded[0])
    assert all(part.startswith(("text_", "tokenizer")) for part in loaded[1])
    assert painter.pipe.text_encoder is None


def test_sizes_are_checked(painter):
    with pytest.raises(ConfigError, match="multiples"):
        painter.draw(PROMPTS, pipeline.SamplingOptions(size=(65, 64)), "x")
    assert pipeline.parse_size("640x512") == (640, 512)
    with pytest.raises(ConfigError, match="--size"):
        pipeline.parse_size("640")


EXPORTS = {"tiny-unet": ["comfyui", "a1111", "diffusers"], "tiny-dit": ["comfyui", "diffusers"]}


def trained(base: str, folder: Path) -> Path:
    data = runs.make_dataset(folder / "data", 3)
    prompts = runs.make_prompts(folder / "p.jsonl")
    recipe = runs.make_recipe(
        folder / "r.yaml",
        base,
        data,
        folder / "run",
        samples={"prompts": str(prompts), "every": 100, "steps": 2},
        optimizer={"lr": 1e-2},
        export=EXPORTS[base],
    )
    return runs.train(recipe)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained("tiny-unet", tmp_path_factory.mktemp("trial"))


def test_sampling_with_an_adapter_and_a_strength(run, tmp_path):
    made = {}
    for strength in ("0", "1"):
        out = tmp_path / strength
        given = f"{run}:{strength}"
        pipeline.sample_to_folder(out, "tiny-unet", given, run.parent / "p.jsonl", FAST)
        made[strength] = np.asarray(Image.open(out / "a-0.png"), np.int16)
        assert len(storage.read_json(out / "samples.json")) == 3
    plain = pipeline.sample_to_folder(
        tmp_path / "plain",
        "tiny-unet",
        None,
        run.parent / "p.jsonl",
        pipeline.SamplingOptions(3, 3.0, (64, 64), quiet=True),
    )
    assert np.abs(np.asarray(Image.open(plain[0]), np.int16) - made["0"]).max() <= 1
    assert np.abs(made["1"] - made["0"]).max() > 1


def test_another_base_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="another base"):
        pipeline.sample_to_folder(tmp_path, "tiny-dit", str(run), run.parent / "p.jsonl", FAST)


@pytest.mark.parametrize("given", ["nowhere.safetensors", "nowhere:0.5"])
def test_a_missing_adapter(given):
    with pytest.raises(ConfigError, match="no such adapter"):
        pipeline.parse_adapter_argument(given)


def test_checkpoints_are_swapped_on_one_loaded_base(run):
    """Another checkpoint, another strength and none at all draw what a base loaded for each of them draws."""
    early, late = (run / f"checkpoints/step-{step:08d}/adapter.safetensors" for step in (4, 12))
    one = pipeline.SamplingPipeline("tiny-unet", early)
    drawn = {}
    for file, strength in ((late, 1.0), (early, 0.5), (early, 1.0)):
        one.swap(file, strength)
        fresh = pipeline.SamplingPipeline("tiny-unet", file, strength)
        drawn[file, strength] = pixels(one.draw(PROMPTS, FAST, "x"))
        own = pixels(fresh.draw(PROMPTS, FAST, "x"))
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(drawn[file, strength], own, strict=True))
    assert np.abs(drawn[late, 1.0][0] - drawn[early, 1.0][0]).max() > 1
    with adapters.adapters_disabled(one.denoiser):
        off = pixels(one.draw(PROMPTS, FAST, "x"))
    plain = pipeline.SamplingPipeline("tiny-unet").draw(
        PROMPTS, pipeline.SamplingOptions(3, 3.0, (64, 64), quiet=True), "x"
    )
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(off, pixels(plain), strict=True))


def test_prompts_are_encoded_once(painter, monkeypatch):
    encoded = []
    plain = type(painter.family).encode

    def encode(self, pipe, captions, *rest):
        encoded.extend(captions)
        return plain(self, pipe, captions, *rest)

    monkeypatch.setattr(type(painter.family), "encode", encode)
    options = pipeline.SamplingOptions(steps=2, guidance=3.0, size=(64, 64), quiet=True)
    new = [Prompt("c", "a pink cross that nobody asked for", "x", seeds=(0, 1))]
    for _ in range(2):
        painter.draw([*PROMPTS, *new], options, "x")
    assert encoded.count(new[0].prompt) == 1


@pytest.mark.parametrize("base", base_model.EMBEDDED_BASES)
def test_the_export_of_a_run_loads_in_diffusers_and_draws_the_same(base, tmp_path):
    """The finished adapter by ours, the exported file by diffusers' own loader on a fresh pipeline."""
    made = trained(base, tmp_path)
    ours, theirs, plain = (
        pipeline.SamplingPipeline(base, made / "adapter.safetensors"),
        pipeline.SamplingPipeline(base),
        pipeline.SamplingPipeline(base),
    )
    (file,) = (made / "exports").glob("*.safetensors")
    theirs.pipe.load_lora_weights(str(file))
    options = pipeline.SamplingOptions(steps=3, guidance=3.0, size=(64, 64), quiet=True)
    drawn = [pixels(painter.draw(PROMPTS, options, "x")) for painter in (ours, theirs, plain)]
    assert max(np.abs(a - b).max() for a, b in zip(drawn[0], drawn[1], strict=True)) <= 1
    assert max(np.abs(a - b).max() for a, b in zip(drawn[0], drawn[2], strict=True)) > 1
