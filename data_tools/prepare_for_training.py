"""Prepare a plain folder of images with the settings of a recipe, on the way to a training."""

from __future__ import annotations

from pathlib import Path

from data_tools.dataset import Dataset
from data_tools.options import PrepareOptions
from data_tools.prepare import prepare_dataset
from lorakit.config.recipe import Recipe


def prepare_for_training(folder: Path, recipe: Recipe, trigger: str | None) -> Dataset:
    """Scan, caption and bucket the images of a folder; `trigger` is None for class images.

    Raises DataError if no image can be used.
    """
    options = PrepareOptions(
        resolution=recipe.resolution,
        batch_size=recipe.train.batch_size,
        trigger=trigger,
        class_noun=recipe.class_noun,
        base=recipe.base,
        videos=recipe.frames > 1,
    )
    return prepare_dataset(folder, options)
