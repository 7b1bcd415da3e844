"""From a recipe to a plan: base, data and prompts are checked against each other before a model is loaded.

The plan is made once; what it finds (base folder, family, images, objective) is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit import adapters, manifest
from lorakit.adapters import text_encoders
from lorakit.adapters.formats.consumers import check_consumer
from lorakit.config.recipe import Recipe
from lorakit.core import rng, storage
from lorakit.core.errors import ConfigError
from lorakit.data import conditioning, prompts
from lorakit.data.items import DatasetItem, check_unchanged, load_training_records, plan_items, select_frames
from lorakit.manifest import Record
from lorakit.models import base_model
from lorakit.models.families import detect_family
from lorakit.models.families.family import Family
from lorakit.training import objective, regularization

LogFn = Callable[[str], None]


@dataclass(frozen=True)
class DataSplit:
    """The images of a dataset that are trained on and those held out for validation."""

    train: list[DatasetItem]
    held_out: list[DatasetItem]


@dataclass(frozen=True)
class DataPlan:
    """The images of a run's dataset on its base model, and the objective."""

    base_folder: Path
    family: Family
    objective: objective.Objective
    items: list[DatasetItem]
    latent_sizes: Mapping[tuple[int, int], tuple[int, int]]
    """(height, width) of the latents of each bucket (width, height)."""


@dataclass(frozen=True)
class TrainingPlan(DataPlan):
    """Everything that is known of a run before a model is loaded."""

    class_image_items: list[DatasetItem]
    prompts: list[prompts.Prompt]
    sample_resolution: int
    """Side of the sampled images in pixels."""
    input_hashes: dict[str, str]
    """Hashes of dataset, base, class images and first adapter, by recipe key."""


def plan_training(recipe: Recipe, log: LogFn) -> TrainingPlan:
    """Check base, data and prompts against each other; raises for every problem before any work is done."""
    base_folder = base_model.resolve_base(recipe.base)
    sample_prompts = prompts.load_prompts(recipe.samples.prompts) if recipe.samples.prompts else []
    records = load_training_records(recipe.dataset)
    kinds = conditioning.conditioning_types(records, generated=recipe.use_generated_controls)
    family = detect_family(base_folder, kinds)
    records = conditioning.without_unused_images(family, records, log)
    for consumer in recipe.export:
        check_consumer(family.name, consumer)
    conditioning.check_prompt_conditioning(family, sample_prompts)
    pipe = family.load(base_folder, dtype=torch.float32, only={"scheduler"})
    data = plan_data(recipe, base_folder, family, pipe, records, log)
    input_hashes = {
        "dataset": manifest.dataset_fingerprint(records),
        "base": base_model.base_hash(base_folder),
    }
    class_items: list[DatasetItem] = []
    if recipe.class_images:
        class_records = regularization.load_class_records(recipe, recipe.class_images)
        class_records = conditioning.without_unused_images(family, class_records)
        conditioning.check_record_conditioning(family, recipe.class_images, class_records)
        class_items = _plan_images(recipe, family, pipe, class_records, max_frames=1)
        input_hashes["class_images"] = manifest.dataset_fingerprint(class_records)
    if recipe.init_from:
        file = _check_init_adapter(recipe, recipe.init_from, family, input_hashes["base"], log)
        input_hashes["init_from"] = storage.sha256_file(file)
    return TrainingPlan(
        base_folder=base_folder,
        family=family,
        objective=data.objective,
        items=data.items,
        latent_sizes={**data.latent_sizes, **_latent_sizes(family, pipe, class_items)},
        class_image_items=class_items,
        prompts=sample_prompts,
        sample_resolution=recipe.resolution,
        input_hashes=input_hashes,
    )


def plan_data(
    recipe: Recipe, base_folder: Path, family: Family, pipe: Any, records: Sequence[Record], log: LogFn
) -> DataPlan:
    """Plan the images of the recipe's dataset on a base of which at least the scheduler is loaded.

    Raises ConfigError for settings that contradict the base, DataError for images that cannot be used.
    """
    _check_data(recipe, family, records)
    built = build_objective(recipe, family, pipe)
    _check_resolution(recipe.resolution, family.size_multiple(pipe))
    _check_frames(recipe, family)
    items = _plan_images(recipe, family, pipe, records, max_frames=recipe.frames, log=log)
    return DataPlan(base_folder, family, built, items, _latent_sizes(family, pipe, items))


def _plan_images(
    recipe: Recipe,
    family: Family,
    pipe: Any,
    records: Sequence[Record],
    *,
    max_frames: int,
    log: LogFn = lambda text: None,
) -> list[DatasetItem]:
    size_multiple = family.size_multiple(pipe)
    planned = plan_items(records, recipe.resolution, size_multiple, recipe.train.batch_size)
    if not planned.from_manifest:
        log(f"buckets chosen for resolution {recipe.resolution}: the manifest has none that suit")
    return select_frames(planned.items, family, pipe, max_frames)


def _check_data(recipe: Recipe, family: Family, records: Sequence[Record]) -> None:
    captions = [caption.text for record in records for caption in record.captions]
    text_encoders.check_text_training(recipe, family, captions)
    check_unchanged(recipe.dataset, records)
    regularization.check_objective_data(recipe, records)
    conditioning.check_record_conditioning(family, recipe.dataset, records)


def _latent_sizes(
    family: Family, pipe: Any, items: Sequence[DatasetItem]
) -> dict[tuple[int, int], tuple[int, int]]:
    """(height, width) of the latents of each bucket; one that the base has no positions for is refused."""
    sizes = {}
    for bucket in {item.bucket for item in items}:
        *_, height, width = family.latent_shape(pipe, *bucket)
        sizes[bucket] = (height, width)
    return sizes


def _check_frames(recipe: Recipe, family: Family) -> None:
    if recipe.frames > 1 and not family.is_video:
        raise ConfigError(
            f"{family.title} makes images, not videos of {recipe.frames} frames",
            where="frames",
            remedy="leave it out, or use a base that makes videos (`lorakit families`)",
        )


def _check_resolution(resolution: int, size_multiple: int) -> None:
    if resolution % size_multiple:
        below = resolution // size_multiple * size_multiple
        near = " or ".join(str(size) for size in (below, below + size_multiple) if size)
        raise ConfigError(
            f"{resolution} does not suit the base: the sides of its images are multiples of {size_multiple}"
            " pixels",
            where="resolution",
            remedy=f"use {near}",
        )


def _check_init_adapter(recipe: Recipe, source: Path, family: Family, base_hash: str, log: LogFn) -> Path:
    """The adapter file that a new run starts from; it must have the recipe's family, type and rank."""
    file = adapters.resolve_adapter_file(source)
    metadata = adapters.read_adapter_metadata(file)
    required = {"family": family.name, "type": recipe.adapter.type, "rank": recipe.adapter.rank}
    for key, value in required.items():
        if metadata[key] != value:
            setting = f"set adapter.{key}={metadata[key]}"
            raise ConfigError(
                f"the adapter to start from has {key} {metadata[key]}, this run {value}",
                where=f"init_from: {source}",
                remedy="use the base it was trained on" if key == "family" else setting,
            )
    if metadata["base_hash"] != base_hash:
        log("the adapter to start from was trained on another base of this family")
    return file


def build_objective(recipe: Recipe, family: Family, pipe: Any) -> objective.Objective:
    """The recipe's objective on a base whose scheduler is loaded; a contradiction is a `ConfigError`."""
    alphas_cumprod = getattr(pipe.scheduler, "alphas_cumprod", None)
    return objective.objective_from_scheduler(
        family.objective, pipe.scheduler.config, recipe.objective, alphas_cumprod, family.shift_patch_size
    )


def split_held_out(items: Sequence[DatasetItem], recipe: Recipe) -> DataSplit:
    """Hold out the recipe's fraction of the images, those with the smallest keyed numbers; one is always
    trained on."""
    count = min(round(len(items) * recipe.validate_.fraction), len(items) - 1)

    def keyed_order(item: DatasetItem) -> tuple[int, str]:
        return rng.derive_seed(recipe.train.seed, "held out", item.record.content_hash), item.record.file

    held_out = {id(item) for item in sorted(items, key=keyed_order)[:count]}
    return DataSplit(
        train=[item for item in items if id(item) not in held_out],
        held_out=[item for item in items if id(item) in held_out],
    )
