"""Plain diffusers pipelines with an adapter: loaded through peft, and sampled as on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model, families
from lorakit.models.families.pipeline_folder import pipeline_components
from lorakit.sampling import diffusers_pipeline, pipeline

CAPTIONS = ["a red circle on a blue background", "a green ring"]
SEEDS = (3, 4)
TOKEN = "zebrahat"


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.int16) for image in images])


def write_adapter(base: str, folder: Path, **settings: object) -> Path:
    """Write an adapter file with random weights, as a training run does."""
    model_folder = base_model.resolve_base(base)
    family = families.detect_family(model_folder)
    tree = {"base": base, "dataset": "d", "out": "o", "adapter": {"rank": 2, "alpha": 2}} | settings
    run = recipe.parse_recipe(tree)
    pipe = family.load(model_folder, dtype=torch.float32)
    specs = text_encoders.inject_adapters(run, family, pipe)
    networks = text_encoders.adaptable_networks(family, pipe)
    torch.manual_seed(0)
    for _, parameter in adapters.all_trainable_parameters(networks):
        torch.nn.init.normal_(parameter, std=0.2)
    metadata = {"family": family.name, "base_hash": base_model.base_hash(model_folder), "resolution": 64}
    metadata |= adapters.adapter_metadata(specs) | text_encoders.textual_inversion_metadata(run)
    tensors = adapters.adapter_state_dict(networks)
    return storage.write_safetensors(
        folder / "adapter.safetensors", tensors, adapters.pack_metadata(metadata)
    )


@pytest.fixture(scope="module", params=base_model.EMBEDDED_BASES)
def base(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_same_prompts_and_seeds_give_the_images_of_the_command_line(base, adapter, tmp_path, strength):
    storage.write_text(tmp_path / "prompts.txt", "\n".join(CAPTIONS))
    options = pipeline.SamplingOptions(num_inference_steps=2, guidance_scale=3.0, quiet=True)
    argument = f"{adapter}:{strength}"
    pipeline.sample_to_folder(tmp_path / "out", base, argument, tmp_path / "prompts.txt", options)
    by_command = [Image.open(tmp_path / f"out/000{n}-{seed}.png") for n in (1, 2) for seed in SEEDS[:1]]
    pipe = diffusers_pipeline.load_pipeline(base, adapter, strength)
    images = diffusers_pipeline.sample(
        pipe, CAPTIONS, seeds=SEEDS[:1], num_inference_steps=2, guidance_scale=3.0
    )
    assert np.abs(pixels(images) - pixels(by_command)).max() <= 1


def test_a_loaded_pipeline_is_a_plain_diffusers_pipeline_with_the_adapter(base, adapter):
    pipe = diffusers_pipeline.load_pipeline(base, adapter)
    without = diffusers_pipeline.load_pipeline(base)
    assert isinstance(pipe, DiffusionPipeline)
    components = pipeline_components(base_model.resolve_base(base))
    assert all(getattr(pipe, name) is not None for name in components)

    def call(pipe: DiffusionPipeline) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        output = pipe(CAPTIONS[0], width=64, height=64, num_inference_steps=2, generator=generator)
        return pixels(output.images)

    assert np.abs(call(pipe) - call(without)).max() > 1


def test_images_are_ordered_by_prompt_then_by_seed(base, adapter):
    pipe = diffusers_pipeline.load_pipeline(base, adapter)
    images = diffusers_pipeline.sample(pipe, CAPTIONS, seeds=SEEDS, num_inference_steps=1)
    assert [image.size for image in images] == [(64, 64)] * 4  # the adapter's resolution
    again = diffusers_pipeline.sample(pipe, CAPTIONS, seeds=SEEDS[::-1], num_inference_steps=1, batch_size=1)
    order = [1, 0, 3, 2]
    assert np.abs(pixels(images)[order] - pixels(again)).max() <= 1
    (one,) = diffusers_pipeline.sample(
        pipe, CAPTIONS[0], seeds=[4], num_inference_steps=1, width=96, height=64
    )
    assert one.size == (96, 64)


def test_text_encoder_adapters_and_new_tokens_are_loaded(tmp_path):
    new_token = {"token": TOKEN, "initializer_token": "red"}
    file = write_adapter(
        "tiny-unet",
        tmp_path,
        adapter={"rank": 2, "alpha": 2, "text_encoder": True},
        textual_inversion=new_token,
    )
    pipe = diffusers_pipeline.load_pipeline("tiny-unet", file)
    assert TOKEN in pipe.tokenizer.get_added_vocab()
    assert adapters.trainable_parameters(pipe.text_encoder)
    without = diffusers_pipeline.load_pipeline("tiny-unet")
    assert TOKEN not in without.tokenizer.get_added_vocab()
    prompt = [f"a {TOKEN} circle"]
    first, second = (
        pixels(diffusers_pipeline.sample(one, prompt, num_inference_steps=1, width=64, height=64))
        for one in (pipe, without)
    )
    assert np.abs(first - second).max() > 1


def test_other_base_models_foreign_pipelines_and_wrong_sizes_are_refused(adapter, base):
    other = next(name for name in base_model.EMBEDDED_BASES if name != base)
    with pytest.raises(ConfigError, match="family sd"):
        diffusers_pipeline.load_pipeline(other, adapter)
    with pytest.raises(ConfigError, match="load_pipeline"):
        diffusers_pipeline.sample(object(), CAPTIONS)  # type: ignore[arg-type]
    pipe = diffusers_pipeline.load_pipeline(base)
    with pytest.raises(ConfigError, match="multiples"):
        diffusers_pipeline.sample(pipe, CAPTIONS, width=65, height=64)
