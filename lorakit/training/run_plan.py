"""From a recipe to a plan: base, data and prompts checked against each other before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
class TrainingPlan:
    """What is known before any model is loaded."""

    base: Path
    family: Family
    items: list[DatasetItem]
    prompts: list[prompts.Prompt]
    inputs: dict[str, str]
    resolution: int
    """Side of the sampled pictures in pixels."""
    grids: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """(H, W) of the latents of each size (width, height) of picture."""
    class_items: list[DatasetItem] = field(default_factory=list)


def plan_training(recipe: Recipe, say: LogFn) -> TrainingPlan:
    """Check base, data and prompts against each other; every problem is found here, before any work."""
    base = base_model.resolve_base(recipe.base)
    text_encoders.check_text_training(
        recipe, detect_family(base), ()
    )  # what no family takes is refused before the data are read
    wanted = prompts.load_prompts(recipe.samples.prompts) if recipe.samples.prompts else []
    records = load_training_records(recipe.dataset)
    family = detect_family(base, {one.kind for record in records for one in record.given})
    _check_exports(recipe, family)
    _check_data(recipe, family, records)
    conditioning.check_prompt_conditioning(family, wanted)
    pipe = family.load(base, dtype=torch.float32, only={"scheduler"})
    build_objective(recipe, family, pipe)  # refuses what contradicts the base
    step = family.size_step(pipe)
    _check_resolution(recipe.resolution, step)
    items, own = plan_items(records, recipe.resolution, step, recipe.train.batch_size)
    if not own:
        say(f"buckets chosen for resolution {recipe.resolution}: the manifest has none that suit")
    items = select_frames(items, family, pipe, _check_frames(recipe, family))
    inputs = {"data": manifest.dataset_fingerprint(records), "base": base_model.base_hash(base)}
    class_items: list[DatasetItem] = []
    if recipe.class_images:
        others = regularization.load_class_records(recipe, recipe.class_images)
        conditioning.check_record_conditioning(family, recipe.class_images, others)
        class_items, _ = plan_items(others, recipe.resolution, step, recipe.train.batch_size)
        class_items = select_frames(class_items, family, pipe, 1)
        inputs["class_images"] = manifest.dataset_fingerprint(others)
    grids = _latent_sizes(family, pipe, [*items, *class_items])
    if recipe.init_from:
        inputs["init_from"] = storage.sha256_file(_check_init_adapter(recipe, recipe.init_from, family))
        if (
            adapters.read_adapter_metadata(adapters.resolve_adapter_file(recipe.init_from))["base_hash"]
            != inputs["base"]
        ):
            say("the adapter to start from was trained on another base of this family")
    return TrainingPlan(base, family, items, wanted, inputs, recipe.resolution, grids, class_items)


def _check_exports(recipe: Recipe, family: Family) -> None:
    for consumer in recipe.export:
        check_consumer(family.name, consumer)


def _check_data(recipe: Recipe, family: Family, records: list[Record]) -> None:
    check_unchanged(recipe.dataset, records)
    regularization.check_objective_data(recipe, records)
    conditioning.check_record_conditioning(family, recipe.dataset, records)
    text_encoders.check_text_training(
        recipe, family, (caption.text for record in records for caption in record.captions)
    )


def _latent_sizes(
    family: Family, pipe: Any, items: list[DatasetItem]
) -> dict[tuple[int, int], tuple[int, int]]:
    """(H, W) of the latents by size of picture; a size that the base has no positions for is refused."""
    found = {}
    for size in {item.size for item in items}:
        *_, height, width = family.latent_shape(pipe, *size)
        found[size] = (height, width)
    return found


def _check_frames(recipe: Recipe, family: Family) -> int:
    if recipe.frames > 1 and not family.clips:
        raise ConfigError(
            f"{family.title} makes pictures, not clips of {recipe.frames} frames",
            where="frames",
            remedy="leave it out, or use a base that makes clips (`lorakit families`)",
        )
    return recipe.frames


def _check_resolution(resolution: int, step: int) -> None:
    if resolution % step:
        below = resolution // step * step
        near = " or ".join(str(size) for size in (below, below + step) if size)
        raise ConfigError(
            f"{resolution} does not suit the base, whose pictures have sides in steps of {step} pixels",
            where="resolution",
            remedy=f"use {near}",
        )


def _check_init_adapter(recipe: Recipe, given: Path, family: Family) -> Path:
    """The adapter file that a new run starts from."""
    file = adapters.resolve_adapter_file(given)
    facts = adapters.read_adapter_metadata(file)
    wanted = {"family": family.name, "type": recipe.adapter.type, "rank": recipe.adapter.rank}
    for key, value in wanted.items():
        if facts[key] != value:
            other = f"set adapter.{key}={facts[key]}"
            raise ConfigError(
                f"the adapter to start from has {key} {facts[key]}, this run {value}",
                where=f"init_from: {given}",
                remedy="use the base it was trained on" if key == "family" else other,
            )
    return file


def build_objective(recipe: Recipe, family: Family, pipe: Any) -> objective.Objective:
    """The recipe's objective on a base whose scheduler is loaded; a contradiction is a `ConfigError`."""
    alphas = getattr(pipe.scheduler, "alphas_cumprod", None)
    return objective.objective_from_scheduler(
        family.objective, pipe.scheduler.config, recipe.objective, alphas, family.token_side
    )


def split_held_out(items: list[DatasetItem], recipe: Recipe) -> tuple[list[DatasetItem], list[DatasetItem]]:
    """(held out, trained on): the share of images with the smallest keyed numbers is held out, at least one
    stays."""
    count = min(round(len(items) * recipe.validate_.fraction), len(items) - 1)
    by_draw = sorted(
        items, key=lambda i: (rng.derive_seed(recipe.train.seed, "held out", i.record.pixels), i.record.file)
    )
    held = {id(item) for item in by_draw[:count]}
    return [i for i in items if id(i) in held], [i for i in items if id(i) not in held]
