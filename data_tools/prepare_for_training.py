"""Prepare a plain folder of images with the settings of a recipe, on the way to a training."""

from __future__ import annotations

from data_tools.dataset import Dataset
from data_tools.options import PrepareOptions
from data_tools.prepare import prepare_dataset
from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe


def prepare_for_training(concept: Concept, recipe: Recipe) -> Dataset:
    """Scan, caption and bucket the images of a concept's folder; the concept of class images has no trigger.

    Raises DataError if no image can be used.
    """
    options = PrepareOptions(
        resolution=recipe.resolution,
        batch_size=recipe.train.batch_size,
        trigger=concept.trigger,
        class_noun=concept.class_noun,
        caption_template=concept.captions,
        base=recipe.base,
        videos=recipe.frames > 1,
    )
    return prepare_dataset(concept.folder, options)
