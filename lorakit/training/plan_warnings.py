"""Warnings about settings far outside the usual range, made before training. None of them stops a run.

The ranges are those that published recipes and trainers use; a setting is named only when it is ten times
outside, so that an unusual experiment is not called a mistake.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lorakit.config.optimizer_names import PRODIGY
from lorakit.config.recipe import Recipe
from lorakit.data.items import DatasetItem
from lorakit.training import schedules

MIN_LR, MAX_LR = 1e-6, 1e-2
"""Learning rates of Adam for adapters: published recipes use 1e-5 to 1e-3."""
MAX_EMBEDDING_LR = 0.5
"""Learning rate of the vectors of a new token: published recipes use 5e-4 to 5e-2."""
MIN_PRODIGY_LR = 0.1
FEW_IMAGES = 4
MAX_EPOCHS, MIN_EPOCHS = 2000, 1
MAX_ALPHA_RATIO, MIN_ALPHA_RATIO = 8.0, 1 / 64
SIZE_RATIO = 2.0
"""Training images this much larger or smaller than the base model's own are named."""


def plan_warnings(
    recipe: Recipe, items: Sequence[DatasetItem], *, total_batch_size: int, native_side: int | None
) -> list[str]:
    """Return a sentence for each setting that is far outside the usual range, with what to do.

    `native_side` is the side of the square images that the base model was trained on, in pixels; None if it
    does not say.
    """
    return [
        *_learning_rate_warnings(recipe),
        *_optimizer_warnings(recipe),
        *_adapter_warnings(recipe),
        *_length_warnings(recipe, items, total_batch_size),
        *_resolution_warnings(recipe, native_side),
    ]


def _learning_rate_warnings(recipe: Recipe) -> Iterator[str]:
    rates = {"optimizer.lr": (recipe.optimizer.lr, MAX_LR)}
    if recipe.optimizer.name == PRODIGY:
        rates = {}
        if recipe.optimizer.lr < MIN_PRODIGY_LR:
            yield f"optimizer.lr is {recipe.optimizer.lr:g}; prodigy finds the rate itself, and 1 is usual"
    if recipe.adapter.text_encoder_lr is not None:
        rates["adapter.text_encoder_lr"] = (recipe.adapter.text_encoder_lr, MAX_LR)
    if recipe.textual_inversion:
        rates["textual_inversion.lr"] = (recipe.textual_inversion.lr, MAX_EMBEDDING_LR)
    for key, (rate, highest) in rates.items():
        if rate > highest:
            yield f"{key} is {rate:g}, far above the usual 1e-5 to 1e-3: training will probably diverge"
        elif rate < MIN_LR:
            yield f"{key} is {rate:g}, far below the usual 1e-5 to 1e-3: the adapter will hardly learn"
    if recipe.optimizer.loraplus_lr_ratio > 64:
        yield (
            f"optimizer.loraplus_lr_ratio is {recipe.optimizer.loraplus_lr_ratio:g}; the paper uses 16, and B"
            f" learns at {recipe.optimizer.lr * recipe.optimizer.loraplus_lr_ratio:g}"
        )


def _optimizer_warnings(recipe: Recipe) -> Iterator[str]:
    optimizer, train, objective = recipe.optimizer, recipe.train, recipe.objective
    if optimizer.weight_decay > 1:
        yield f"optimizer.weight_decay is {optimizer.weight_decay:g}; 0 to 0.1 is usual"
    if optimizer.betas and (optimizer.betas[0] < 0.5 or optimizer.betas[1] < 0.9):
        yield f"optimizer.betas are {optimizer.betas}; [0.9, 0.999] is usual, smaller ones follow the noise"
    if optimizer.max_grad_norm < 1e-3:
        yield f"optimizer.max_grad_norm is {optimizer.max_grad_norm:g}: nearly every gradient is scaled down"
    warmup = schedules.warmup_steps(range(train.steps), optimizer)
    if warmup > train.steps / 2:
        yield f"optimizer.warmup takes {warmup} of {train.steps} steps"
    for use in {concept.caption_use for concept in recipe.concepts if concept.caption_use}:
        if use.caption_dropout > 0.5:
            share = f"{use.caption_dropout:.0%}"
            yield f"caption_use.caption_dropout drops {share} of the captions; 5 to 10 % is usual"
        if use.tag_dropout > 0.5:
            yield f"caption_use.tag_dropout leaves out {use.tag_dropout:.0%} of the tags; 5 to 20 % is usual"
    if objective.noise_offset > 0.3:
        yield f"objective.noise_offset is {objective.noise_offset:g}; 0.05 to 0.1 is usual"


def _adapter_warnings(recipe: Recipe) -> Iterator[str]:
    adapter = recipe.adapter
    if adapter.type in ("none", "oft"):
        return
    ratio = adapter.alpha / (math.sqrt(adapter.rank) if adapter.type == "rslora" else adapter.rank)
    effect = f"adapter.alpha {adapter.alpha:g} at rank {adapter.rank} scales the update by {ratio:.3g}"
    if ratio > MAX_ALPHA_RATIO:
        yield f"{effect}, which acts like a learning rate as many times higher; 0.5 to 2 is usual"
    elif ratio < MIN_ALPHA_RATIO:
        yield f"{effect}: the adapter will hardly learn; 0.5 to 2 is usual"


def _length_warnings(recipe: Recipe, items: Sequence[DatasetItem], total_batch_size: int) -> Iterator[str]:
    num_images = len({item.record.content_hash for item in items})
    per_epoch = sum(item.repeats for item in items)
    if num_images == 1:
        yield "the dataset has one image, which the adapter will copy; 10 to 30 are usual"
    elif num_images < FEW_IMAGES and not recipe.slider:
        yield f"the dataset has only {num_images} images; 10 to 30 are usual"
    if total_batch_size > per_epoch:
        yield (
            f"a step takes {total_batch_size} images and an epoch has {per_epoch}: a step sees images"
            " several times; a smaller batch trains more steps in the same time"
        )
    epochs = recipe.train.steps * total_batch_size / max(1, per_epoch)
    if epochs > MAX_EPOCHS:
        steps = recipe.train.steps
        yield f"{steps} steps are {epochs:,.0f} epochs of {per_epoch} images; 50 to 300 are usual"
    elif epochs < MIN_EPOCHS:
        yield f"{recipe.train.steps} steps train only {epochs:.0%} of the images once; raise train.steps"
    if recipe.train.save_every > recipe.train.steps:
        yield (
            f"train.save_every is {recipe.train.save_every} and the run has {recipe.train.steps} steps: a"
            " crash costs all of them, and the only checkpoint is the last one"
        )


def _resolution_warnings(recipe: Recipe, native_side: int | None) -> Iterator[str]:
    if native_side is None:
        return
    ratio = recipe.resolution / native_side
    if not 1 / SIZE_RATIO <= ratio <= SIZE_RATIO:
        direction = "larger" if ratio > 1 else "smaller"
        yield (
            f"resolution {recipe.resolution} is much {direction} than the base model's own {native_side}: its"
            " predictions are poor there; resolution near its own is usual"
        )
