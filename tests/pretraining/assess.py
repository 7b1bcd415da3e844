"""What a base draws right: CLIP picks each attribute of fresh prompts' pictures among its alternatives."""

from __future__ import annotations

from collections.abc import Sequence
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
JOINT_ATTRIBUTES = (
    "shape",
    "colour",
    "position",
)  # those of the joint share; style, size and background are told besides

Pictures = NDArray[np.uint8]


def unseen_scenes(count: int, seed: int) -> list[shape_world.Scene]:
    """Compositions of the base world that pre-training never saw, all different."""
    rng = np.random.default_rng([seed, 77])
    found: dict[str, shape_world.Scene] = {}
    while len(found) < count:
        scene = shape_world.random_scene(rng)
        if shape_world.is_held_out(scene):
            found.setdefault(shape_world.scene_caption(scene), scene)
    return list(found.values())


def sample_prompts(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 32,
) -> Pictures:
    """One picture a prompt, (N, 64, 64, 3) uint8; picture k depends on `seed` + k alone."""
    extra = {"max_sequence_length": models.T5_SEQUENCE_LENGTH} if hasattr(pipe, "transformer") else {}
    pictures: list[Pictures] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        with torch.no_grad(), torch.autocast(pipe.device.type, dtype=torch.bfloat16):
            images = pipe(
                part,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=shape_world.IMAGE_SIZE,
                width=shape_world.IMAGE_SIZE,
                generator=[torch.Generator().manual_seed(seed + start + k) for k in range(len(part))],
                output_type="np",
                **extra,
            ).images
        pictures.append((np.asarray(images, np.float32) * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


@torch.no_grad()
def clip_choices(
    clip: Any,
    tokenizer: Any,
    pictures: Pictures,
    scenes: Sequence[shape_world.Scene],
    *,
    alternatives: dict[str, Sequence[str]] | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Per attribute, whether CLIP prefers a scene's own caption to those with another word in its place."""
    images = clip_model.encode_images(clip, pictures)
    verdicts = {}
    for name, words in (alternatives or attribute_words()).items():
        captions = [
            shape_world.scene_caption(shape_world.with_attribute(s, name, word), say_solid=True)
            for s in scenes
            for word in words
        ]
        texts = clip_model.encode_texts(clip, clip_model.tokenize(tokenizer, captions))
        scores = torch.einsum("nd,nwd->nw", images, texts.view(len(scenes), len(words), -1))
        own = torch.tensor([list(words).index(getattr(s, name)) for s in scenes], device=scores.device)
        verdicts[name] = (scores.argmax(1) == own).cpu().numpy()
    return verdicts


def attribute_words() -> dict[str, Sequence[str]]:
    """The words that the base world has for each attribute."""
    return {**shape_world.ATTRIBUTES, "shape": shape_world.BASE_SHAPES, "style": shape_world.BASE_STYLES}


def accuracy_by_attribute(verdicts: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    """The share judged right of each attribute, and of `JUDGED` at once as `joint`."""
    figures = {name: round(float(right.mean()), 3) for name, right in verdicts.items()}
    figures["joint"] = round(float(np.all([verdicts[name] for name in JOINT_ATTRIBUTES], axis=0).mean()), 3)
    return figures


def measure_accuracy(
    pipe: Any,
    clip: Any,
    tokenizer: Any,
    *,
    count: int,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> tuple[dict[str, float], Pictures]:
    """Shares over `count` fresh prompts, and the pictures."""
    scenes = unseen_scenes(count, seed)
    pictures = sample_prompts(
        pipe, [shape_world.scene_caption(s) for s in scenes], seed=1000 * seed, steps=steps, guidance=guidance
    )
    return accuracy_by_attribute(clip_choices(clip, tokenizer, pictures, scenes)), pictures


def assess_base(
    pipeline_folder: Path,
    clip_folder: Path,
    n: int = 200,
    seed: int = 0,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> dict[str, Any]:
    """The base's shares, those of the true pictures (CLIP's own ceiling), and CLIP's R@1 among 512."""
    clip, tokenizer = clip_model.load_clip(clip_folder)
    pipe = models.load_pipeline(pipeline_folder)
    figures, _ = measure_accuracy(pipe, clip, tokenizer, count=n, seed=seed, steps=steps, guidance=guidance)
    scenes = unseen_scenes(n, seed)
    ceiling = accuracy_by_attribute(clip_choices(clip, tokenizer, shape_world.render_scenes(scenes), scenes))
    return {
        "base": figures,
        "ceiling": ceiling,
        "clip_retrieval_512": clip_model.retrieval_recall(clip, tokenizer),
    }


def image_grid(pictures: Pictures, columns: int = 8, scale: int = 2) -> Image.Image:
    """The pictures in rows, enlarged."""
    rows = len(pictures) // columns
    side = pictures.shape[1]
    cells = pictures[: rows * columns].reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(cells.reshape(rows * side, columns * side, 3))
    return sheet.resize((scale * columns * side, scale * rows * side), Image.Resampling.NEAREST)
