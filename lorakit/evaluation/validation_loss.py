"""The validation loss of a run's checkpoints, as it was measured during the training, and beside it the loss
of images that were trained on. The gap between the two shows memorization.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.config.recipe import Recipe
from lorakit.core import rng
from lorakit.data.items import DatasetItem, load_concepts
from lorakit.sampling.pipeline import SamplingPipeline
from lorakit.training import run_caches, run_plan, setup, slider
from lorakit.training.held_out import DataSplit
from lorakit.training.validation import ValidationLoss

MAX_TRAIN_IMAGES = 32  # images that were trained on, for comparison


class RunValidation:
    """The validation loss of a run, for each checkpoint that is loaded in `pipeline`."""

    def __init__(self, recipe: Recipe, pipeline: SamplingPipeline) -> None:
        family, pipe = pipeline.family, pipeline.pipe
        concepts = load_concepts(recipe.concepts)
        plan = run_plan.plan_data(recipe, pipeline.base_folder, family, pipe, concepts, lambda text: None)
        parts = {"validation": plan.split.held_out, "train": _train_images(recipe, plan.split)}
        filled = run_caches.RunCaches(recipe, plan, pipeline.device, lambda text: None)
        filled.fill([item for items in parts.values() for item in items])
        text = setup.text_source(recipe, family, pipe, filled)
        loss = slider.build_loss(recipe, family, pipe, plan.objective, pipeline.device)
        self.losses = {
            name: ValidationLoss(loss, filled.training_set(items, text, repeated=False))
            for name, items in parts.items()
        }

    @property
    def is_empty(self) -> bool:
        """True if the run held no images out."""
        return not self.losses["validation"].data.items

    def image_losses(self) -> dict[str, list[float]]:
        """The loss of each held-out image and of each training image, with the adapter that is loaded now."""
        return {name: loss.image_losses(quiet=True) for name, loss in self.losses.items()}


def _train_images(recipe: Recipe, split: DataSplit) -> Sequence[DatasetItem]:
    """As many training images as are held out, the same for every checkpoint; at most `MAX_TRAIN_IMAGES`."""

    def keyed_order(item: DatasetItem) -> int:
        return rng.derive_seed(recipe.train.seed, "trained sample", item.record.content_hash)

    count = min(len(split.held_out), MAX_TRAIN_IMAGES)
    return sorted(split.train, key=keyed_order)[:count]
