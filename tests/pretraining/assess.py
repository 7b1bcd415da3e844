"""Accuracy of a base model: CLIP chooses each attribute of its images among the alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lorakit.quickstart import shape_world
from tests.pretraining import clip as clip_model
from tests.pretraining import models

STEPS = 20
GUIDANCE = 4.0
JOINT_ATTRIBUTES = ("shape", "colour", "position")  # all of them right: the share `joint`

ImageBatch = NDArray[np.uint8]


def unseen_scenes(count: int, seed: int) -> list[shape_world.Scene]:
    """Return compositions that pre-training has not used, all different."""
    rng = np.random.default_rng([seed, 77])
    scenes: dict[str, shape_world.Scene] = {}
    while len(scenes) < count:
        scene = shape_world.random_scene(rng)
        if shape_world.is_held_out(scene):
            scenes.setdefault(shape_world.scene_caption(scene), scene)
    return list(scenes.values())


def sample_prompts(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 32,
) -> ImageBatch:
    """Return one image for each prompt, (N, 64, 64, 3) uint8; image k depends only on `seed` + k."""
    extra = {"max_sequence_length": models.T5_SEQUENCE_LENGTH} if hasattr(pipe, "transformer") else {}
    image_batches: list[ImageBatch] = []
    for start in range(0, len(prompts), batch):
        batch_prompts = list(prompts[start : start + batch])
        with torch.no_grad(), torch.autocast(pipe.device.type, dtype=torch.bfloat16):
            images = pipe(
                batch_prompts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=shape_world.IMAGE_SIZE,
                width=shape_world.IMAGE_SIZE,
                generator=[
                    torch.Generator().manual_seed(seed + start + k) for k in range(len(batch_prompts))
                ],
                output_type="np",
                **extra,
            ).images
        image_batches.append((np.asarray(images, np.float32) * 255).round().astype(np.uint8))
    return np.concatenate(image_batches)


@torch.no_grad()
def clip_choices(
    clip: Any,
    tokenizer: Any,
    images: ImageBatch,
    scenes: Sequence[shape_world.Scene],
    *,
    alternatives: dict[str, Sequence[str]] | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Return by attribute (N,) True where CLIP prefers a scene's own caption to those with another word."""
    image_features = clip_model.encode_images(clip, images)
    correct = {}
    for name, words in (alternatives or attribute_words()).items():
        captions = [
            shape_world.scene_caption(shape_world.with_attribute(s, name, word), include_solid=True)
            for s in scenes
            for word in words
        ]
        texts = clip_model.encode_texts(clip, clip_model.tokenize(tokenizer, captions))
        scores = torch.einsum("nd,nwd->nw", image_features, texts.view(len(scenes), len(words), -1))
        own = torch.tensor([list(words).index(getattr(s, name)) for s in scenes], device=scores.device)
        correct[name] = (scores.argmax(1) == own).cpu().numpy()
    return correct


def attribute_words() -> dict[str, Sequence[str]]:
    """Return the words of each attribute that the base models know."""
    return {**shape_world.ATTRIBUTES, "shape": shape_world.BASE_SHAPES, "style": shape_world.BASE_STYLES}


def accuracy_by_attribute(correct: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Return the share that is right for each attribute, and for all of `JOINT_ATTRIBUTES` as `joint`."""
    shares = {name: round(float(right.mean()), 3) for name, right in correct.items()}
    shares["joint"] = round(float(np.all([correct[name] for name in JOINT_ATTRIBUTES], axis=0).mean()), 3)
    return shares


@dataclass(frozen=True)
class Accuracy:
    """Shares by attribute, and the images that they were measured on."""

    shares: dict[str, float]
    images: ImageBatch


def measure_accuracy(
    pipe: Any,
    clip: Any,
    tokenizer: Any,
    *,
    count: int,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Accuracy:
    """Measure the accuracy on `count` unseen prompts."""
    scenes = unseen_scenes(count, seed)
    images = sample_prompts(
        pipe, [shape_world.scene_caption(s) for s in scenes], seed=1000 * seed, steps=steps, guidance=guidance
    )
    return Accuracy(accuracy_by_attribute(clip_choices(clip, tokenizer, images, scenes)), images)


def assess_base(
    pipeline_folder: Path,
    clip_folder: Path,
    n: int = 200,
    seed: int = 0,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> dict[str, Any]:
    """Return the base model's accuracy, that of true images (CLIP's own limit), and CLIP's R@1 among 512."""
    clip, tokenizer = clip_model.load_clip(clip_folder)
    pipe = models.load_pipeline(pipeline_folder)
    accuracy = measure_accuracy(pipe, clip, tokenizer, count=n, seed=seed, steps=steps, guidance=guidance)
    scenes = unseen_scenes(n, seed)
    true_images = accuracy_by_attribute(
        clip_choices(clip, tokenizer, shape_world.render_scenes(scenes), scenes)
    )
    return {
        "base": accuracy.shares,
        "true_images": true_images,
        "clip_retrieval_512": clip_model.retrieval_recall(clip, tokenizer),
    }


def image_grid(images: ImageBatch, columns: int = 8, scale: int = 2) -> Image.Image:
    """Return the images in rows, enlarged."""
    rows = len(images) // columns
    side = images.shape[1]
    cells = images[: rows * columns].reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(cells.reshape(rows * side, columns * side, 3))
    return sheet.resize((scale * columns * side, scale * rows * side), Image.Resampling.NEAREST)
