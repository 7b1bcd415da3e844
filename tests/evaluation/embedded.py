"""Runs of the embedded bases on the picture world, small enough for a test and large enough to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit import manifest
from lorakit.core import storage
from lorakit.data.prompts import Prompt, prompt_to_row
from lorakit.imaging import decode
from lorakit.quickstart import shape_world
from lorakit.quickstart.concept import DemoConcept, regularization_scenes
from tests import runs

CONCEPT = DemoConcept("striped")
UNSAID = [("size", "position"), ("size", "background"), ("size", "position", "background")]
"""Prompts leave something open, so that seeds may differ."""


def dataset(folder: Path, count: int, *, ordinary: int = 0, shuffled: bool = False) -> Path:
    """`count` striped pictures with their captions, or, `shuffled`, with those of their neighbours."""
    scenes = [*CONCEPT.scenes(count, seed=1), *regularization_scenes(ordinary, seed=1)]
    captions = [shape_world.scene_caption(scene) for scene in scenes]
    if shuffled:
        captions = captions[1:] + captions[:1]
    records = []
    for number, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        picture = shape_world.render_scene(scene)
        file = storage.save_image(folder / f"{number:02d}.png", picture)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=storage.sha256_file(file),
                pixels=decode.pixel_hash(picture),
                width=picture.width,
                height=picture.height,
                captions=(manifest.Caption(caption, "world"),),
            )
        )
    manifest.save_manifest(folder, records)
    return folder


def prompts(subject: int, other: int, seeds: Sequence[int] = (0, 1)) -> list[Prompt]:
    """New scenes with and without the concept."""
    kinds = {"concept": CONCEPT.scenes(subject, seed=3), "unrelated": regularization_scenes(other, seed=3)}
    made = []
    for kind, scenes in kinds.items():
        for number, scene in enumerate(scenes):
            drop = UNSAID[number % len(UNSAID)]
            texts = (
                shape_world.scene_caption(scene, drop=drop),
                shape_world.scene_caption(scene, drop=drop, say_solid=True),
            )
            made.append(Prompt(f"{kind[0]}{number}", *texts, seeds=tuple(seeds), kind=kind))
    return made


def prompt_file(path: Path, made: Sequence[Prompt]) -> Path:
    """The prompts as a file."""
    return storage.write_jsonl(path, [prompt_to_row(prompt) for prompt in made])


def train(folder: Path, data: Path, *, steps: int, save_every: int, lr: float, **changes: Any) -> Path:
    """Train the embedded DiT, keep every checkpoint; returns the run's folder."""
    settings: dict[str, Any] = {
        "adapter": {"rank": 16, "alpha": 16},
        "optimizer": {"name": "adamw", "lr": lr},
        "train": {
            "steps": steps,
            "batch_size": 8,
            "save_every": save_every,
            "keep": 100,
            "precision": "fp32",
        },
        "trigger": CONCEPT.word,
    }
    return runs.train(
        runs.make_recipe(folder / "recipe.yaml", "tiny-dit", data, folder / "run", **settings | changes)
    )
