"""A population to evaluate on: real features of a subject, and checkpoints with known truth.

The features are the embedded CLIP's of rendered scenes, each with the look of the subject and with that of
the base model. References are sampled from the population; an image of a checkpoint lies between the two
looks of its prompt's scene. Prompts differ in difficulty, checkpoints differ by prompt, seeds are nested in
prompts, and all noise has heavy tails. Nothing here uses the estimators.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
SCENES = 160
SUBJECT = {"shape": "star", "style": "striped"}
BASE_LOOK = {"shape": "circle", "style": "solid"}


@dataclass(frozen=True)
class Population:
    """Unit features (N, D) of N scenes: with the look of the subject, and with that of the base model.

    Images of other scenes than the references that are `mix` parts subject and the rest base model have the
    fidelity `mix`: the look of the subject is that of the references, in scenes of the same kind.
    """

    subject: FloatArray
    base: FloatArray


@lru_cache(maxsize=1)
def shape_world_population() -> Population:
    """Render scenes with both looks and encode them with the embedded CLIP (seconds)."""
    from lorakit.models import base_model, clip_score
    from lorakit.quickstart import shape_world

    rng = np.random.default_rng(20)
    scenes = [shape_world.random_scene(rng) for _ in range(SCENES)]
    clip = clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    looks = []
    for look in (SUBJECT, BASE_LOOK):
        images = []
        for scene in scenes:
            changed = scene
            for attribute, word in look.items():
                changed = shape_world.with_attribute(changed, attribute, word)
            images.append(shape_world.render_scene(changed))
        looks.append(clip.image_features(images).double().numpy())
    return Population(*looks)


@dataclass(frozen=True)
class Checkpoint:
    """The truth about a checkpoint: its fidelity `mix`, adherence, faults."""

    mix: float
    adherence: float = 1.0
    copies: float = 0.0
    drift: float = 0.1
    diversity: float = 1.0
    validation_loss: float = 1.0


def _curve(name: str, share: float) -> Checkpoint:
    """Return the checkpoint after a share of the training for one of seven shapes of the curve."""
    drift = 0.04 + 0.08 * share
    if name == "rising":
        return Checkpoint(0.1 + 0.75 * share, 1 - 0.05 * share, drift=drift)
    if name == "plateau":
        return Checkpoint(0.8 * (1 - np.exp(-6 * share)), 1 - 0.04 * share, drift=drift)
    if name == "early peak":
        late = max(0.0, share - 0.3)
        return Checkpoint(min(0.75, 2.6 * share), 1 - 0.7 * late, drift=drift + 0.15 * late)
    if name == "late peak":
        late = max(0.0, share - 0.8)
        return Checkpoint(0.95 * share**0.7, 1 - 1.2 * late, drift=drift)
    if name == "overfit":
        late = max(0.0, share - 0.55)
        return Checkpoint(
            min(1.0, 0.15 + 1.1 * share), 1 - 0.8 * late, 1.4 * late, drift, 1 - 0.6 * late, 1 + 0.3 * late
        )
    if name == "flat":
        return Checkpoint(0.45, 0.95, drift=drift)
    swing = 0.12 * np.sin(9 * np.pi * share)
    return Checkpoint(0.15 + 0.6 * share + swing, 1 - 0.12 * share - 0.4 * abs(swing), drift=drift)


SHAPES = ("rising", "plateau", "early peak", "late peak", "overfit", "flat", "zigzag")


def training_curve(name: str, count: int = 10) -> list[Checkpoint]:
    """Return the checkpoints of a run whose quality follows one of `SHAPES`."""
    return [_curve(name, number / count) for number in range(1, count + 1)]
