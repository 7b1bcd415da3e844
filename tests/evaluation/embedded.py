"""Runs of the embedded base models on the shape world: small enough for a test, large enough to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit import manifest
from lorakit.core import checksums, storage
from lorakit.data.prompts import Prompt, prompt_to_row
from lorakit.imaging import decode
from lorakit.quickstart import shape_world
from lorakit.quickstart.concept import DemoConcept, regularization_scenes
from tests import runs

CONCEPT = DemoConcept("striped")
OMITTED = [("size", "position"), ("size", "background"), ("size", "position", "background")]
"""Prompts leave something open, so that seeds can differ."""


def dataset(folder: Path, count: int, *, ordinary: int = 0, shuffled: bool = False) -> Path:
    """Write `count` striped and `ordinary` other images; if `shuffled`, each with its neighbour's caption."""
    scenes = [*CONCEPT.scenes(count, seed=1), *regularization_scenes(ordinary, seed=1)]
    captions = [shape_world.scene_caption(scene) for scene in scenes]
    return write_images(folder, scenes, captions[1:] + captions[:1] if shuffled else captions)


def write_images(
    folder: Path, scenes: Sequence[shape_world.Scene], captions: Sequence[str] | None = None
) -> Path:
    """Write images of scenes and their manifest; without `captions` each has the caption of its scene."""
    captions = captions or [shape_world.scene_caption(scene) for scene in scenes]
    records = []
    for number, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        image = shape_world.render_scene(scene)
        file = storage.save_image(folder / f"{number:02d}.png", image)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=checksums.sha256_file(file),
                content_hash=decode.pixel_hash(image),
                width=image.width,
                height=image.height,
                captions=(manifest.Caption(caption, "world"),),
            )
        )
    manifest.save_manifest(folder, records)
    return folder


def prompts(subject: int, unrelated: int, seeds: Sequence[int] = (0, 1)) -> list[Prompt]:
    """Prompts of new scenes with (c0, c1, ...) and without (u0, u1, ...) the concept."""
    kinds = {
        "subject": ("c", CONCEPT.scenes(subject, seed=3)),
        "unrelated": ("u", regularization_scenes(unrelated, seed=3)),
    }
    prompts = []
    for kind, (prefix, scenes) in kinds.items():
        for number, scene in enumerate(scenes):
            omitted = OMITTED[number % len(OMITTED)]
            texts = (
                shape_world.scene_caption(scene, omit=omitted),
                shape_world.scene_caption(scene, omit=omitted, include_solid=True),
            )
            prompts.append(Prompt(f"{prefix}{number}", *texts, seeds=tuple(seeds), kind=kind))
    return prompts


def prompt_file(path: Path, prompts: Sequence[Prompt]) -> Path:
    """Write the prompts to a file."""
    return storage.write_jsonl(path, [prompt_to_row(prompt) for prompt in prompts])


def train(folder: Path, data: Path, *, steps: int, save_every: int, lr: float, **changes: Any) -> Path:
    """Train tiny-dit and keep every checkpoint; return the run's folder."""
    settings: dict[str, Any] = {
        "adapter": {"rank": 16, "alpha": 16},
        "optimizer": {"name": "adamw", "lr": lr},
        "train": {
            "steps": steps,
            "batch_size": 8,
            "save_every": save_every,
            "keep_optimizer_states": 100,
            "precision": "fp32",
        },
        "trigger": CONCEPT.word,
    }
    return runs.train(
        runs.make_recipe(folder / "recipe.yaml", "tiny-dit", data, folder / "run", **settings | changes)
    )
