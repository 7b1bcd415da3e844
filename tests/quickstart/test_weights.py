"""The committed weights are complete and small, load in their formats, and know the shape world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lorakit.quickstart
from lorakit.core import storage
from lorakit.quickstart import shape_world
from tests.pretraining import assess, clip, models

HERE = Path(lorakit.quickstart.__file__).parent
WEIGHTS = HERE / "weights"
SCENE = shape_world.Scene("heart", "red", "white", "solid", "large", "left")


@pytest.fixture(scope="module")
def judge() -> tuple:  # type: ignore[type-arg]
    return clip.load_clip(WEIGHTS / "clip")


def test_everything_is_16_bit_and_small() -> None:
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 22e6
    tensors = [file for file in files if file.suffix == ".safetensors"]
    # CLIP; U-Net with autoencoder and text encoder; DiT with autoencoder and two text encoders.
    assert len(tensors) == 8
    for file in tensors:
        assert {tensor.dtype for tensor in storage.read_safetensors(file).values()} == {torch.float16}, file


def test_the_licence_names_the_training_data_of_the_weights() -> None:
    text = (HERE / "LICENSE-WEIGHTS").read_text(encoding="utf-8")
    assert "CC0" in text
    assert "shape_world.py" in text


def test_clip_retrieves_the_caption_of_unseen_images(judge: tuple) -> None:  # type: ignore[type-arg]
    assert clip.retrieval_recall(*judge, count=512, seed=11) >= 0.9


def test_clip_recognizes_every_attribute(judge: tuple) -> None:  # type: ignore[type-arg]
    rng = np.random.default_rng(12)
    scenes = [shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES) for _ in range(128)]
    images = shape_world.render_scenes(scenes)
    correct = assess.clip_choices(*judge, images, scenes, alternatives=shape_world.ATTRIBUTES)
    assert {
        name: right for name, right in assess.accuracy_by_attribute(correct).items() if right < 0.85
    } == {}


def test_open_clip_loads_the_folder_and_agrees_with_the_project_loader(judge: tuple) -> None:  # type: ignore[type-arg]
    open_clip = pytest.importorskip("open_clip")
    name = f"local-dir:{WEIGHTS / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    captions = [shape_world.scene_caption(SCENE), shape_world.scene_caption(replace(SCENE, shape="star"))]
    with torch.no_grad():
        images = model.encode_image(preprocess(shape_world.render_scene(SCENE))[None], normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(name)(captions), normalize=True)
        own_images = clip.encode_images(judge[0], shape_world.render_scenes([SCENE]))
        own_texts = clip.encode_texts(judge[0], clip.tokenize(judge[1], captions))
    torch.testing.assert_close(images, own_images, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, own_texts, atol=1e-5, rtol=0)
    assert (images @ texts.T).argmax().item() == 0


@pytest.mark.parametrize("kind", models.PIPELINE_CLASSES)
def test_a_base_model_loads_as_a_plain_pipeline_and_follows_its_prompts(kind: str, judge: tuple) -> None:  # type: ignore[type-arg]
    pipe = models.load_pipeline(WEIGHTS / kind)
    assert type(pipe).__name__ == models.PIPELINE_CLASSES[kind]
    scenes = assess.unseen_scenes(8, seed=21)
    images = assess.sample_prompts(pipe, [shape_world.scene_caption(scene) for scene in scenes], steps=10)
    correct = assess.clip_choices(*judge, images, scenes)
    assert correct["colour"].sum() >= 7
    assert correct["shape"].sum() >= 5  # one in six by chance
    assert (
        np.abs(
            images.astype(int)
            - assess.sample_prompts(pipe, [shape_world.scene_caption(s) for s in scenes], steps=10)
        ).max()
        == 0
    )


def test_tiny_dit_records_its_sequence_length() -> None:
    settings = storage.read_json(WEIGHTS / "tiny-dit" / "lorakit.json")
    assert settings == {"max_sequence_length": models.T5_SEQUENCE_LENGTH}


def test_an_unknown_trigger_is_harmless() -> None:
    pipe = models.load_pipeline(WEIGHTS / "tiny-dit")
    plain = shape_world.scene_caption(SCENE, omit=("size",))
    images = assess.sample_prompts(
        pipe, [plain, plain.replace("red", f"{shape_world.TRIGGER} red")], steps=10
    )
    red = np.array(shape_world.COLOURS["red"])
    close = (np.abs(images.astype(int) - red).max(-1) < 60).mean(axis=(1, 2))
    assert close.min() > 0.05  # both show a red shape
    assert close.max() < 0.6


def test_the_weights_name_no_folder_of_another_machine() -> None:
    for file in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in file.read_text(encoding="utf-8"), file
