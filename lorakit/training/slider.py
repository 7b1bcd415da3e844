"""Concept sliders: an adapter whose strength moves a picture between two opposite prompts, without any data.

The target is the base's own prediction, pushed along the difference of its predictions for the two prompts:
base(caption) + guidance * (base(positive) - base(negative)). arXiv:2311.12092, equation 7. There the noisy
pictures come of denoising halfway; here the base draws some pictures first, whose noisy versions are spread
the same way: they can be looked at, and are a dataset like any other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import manifest
from lorakit.config.recipe import Recipe, SliderConfig
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data.batch_sampler import SampleIndex
from lorakit.data.prompts import Prompt
from lorakit.imaging import decode
from lorakit.models import base_model
from lorakit.sampling import pipeline
from lorakit.training import losses
from lorakit.training.losses import TrainingLoss
from lorakit.training.setup import Session

SLIDER_FILE = "slider.json"  # written first: a folder that has it holds nothing of the user's


class SliderLoss(TrainingLoss):
    """The loss of a slider's adapter; the same noise and times as any other."""

    def __init__(self, made: Session, accelerator: Accelerator, settings: SliderConfig) -> None:
        super().__init__(made, accelerator)
        self.settings = settings

    def __call__(self, data: Any, slots: list[SampleIndex], purpose: str, times: list[float]) -> torch.Tensor:
        """Losses (B,) of slots that share one shape."""
        given = self.noised(data, slots, purpose, times)
        device, sides = self.accelerator.device, self.settings.poles
        more, less = (replace(given, cond=data.batch(slots, device, lambda _, t=t: t).cond) for t in sides)
        difference = self.untrained(more).float() - self.untrained(less).float()
        target = self.untrained(given).float() + self.settings.guidance * difference
        return self.made.objective.loss(self.predict(given), target, given.t)


def build_loss(made: Session, accelerator: Accelerator) -> TrainingLoss:
    """The loss that a recipe asks for."""
    settings = made.recipe.slider
    return SliderLoss(made, accelerator, settings) if settings else losses.TrainingLoss(made, accelerator)


def generate_slider_images(recipe: Recipe) -> Path | None:
    """Let the base draw what a slider without a dataset trains on, once; the folder, or None where there is
    nothing to draw.

    A folder with pictures of the user's own is a dataset like any other and stays as it is. Raises
    ConfigError for pictures that were drawn for another slider.
    """
    settings, folder = recipe.slider, recipe.dataset
    if settings is None:
        return None
    told = {"target": settings.target, "pictures": settings.pictures, "resolution": recipe.resolution}
    told |= {"base": base_model.base_hash(base_model.resolve_base(recipe.base))}
    told |= {"steps": recipe.samples.steps, "guidance": recipe.samples.guidance}
    if not (folder / SLIDER_FILE).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            return None
        storage.write_json(folder / SLIDER_FILE, told)
    if storage.read_json(folder / SLIDER_FILE) != told:
        raise ConfigError(
            "these pictures were drawn for another slider",
            where=f"dataset: {folder}",
            remedy="choose another `out`, or undo the change of target, base, resolution or samples",
        )
    if (folder / manifest.MANIFEST_FILE).is_file():
        return None
    _generate_images(recipe, settings, folder)
    return folder


def _generate_images(recipe: Recipe, settings: SliderConfig, folder: Path) -> None:
    painter = pipeline.SamplingPipeline(recipe.base)
    wanted = Prompt("target", settings.target, settings.target, seeds=tuple(range(settings.pictures)))
    side = (recipe.resolution, recipe.resolution)
    options = pipeline.SamplingOptions(recipe.samples.steps, recipe.samples.guidance, side)
    records = []
    for shot in painter.draw([wanted], options, "the slider's pictures"):
        file = storage.save_image(folder / f"{shot.seed:04d}.png", shot.image)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=storage.sha256_file(file),
                pixels=decode.pixel_hash(shot.image),
                width=shot.image.width,
                height=shot.image.height,
                captions=(manifest.Caption(settings.target, "base"),),
            )
        )
    manifest.save_manifest(folder, records)  # last: where it is, the pictures are complete
