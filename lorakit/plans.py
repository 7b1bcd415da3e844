"""From a recipe to a plan: base, data and prompts checked against each other before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorakit import (
    adapter,
    bases,
    dataset,
    keyed,
    manifest,
    objective,
    preserving,
    prompts,
    shown,
    storage,
    trained_text,
)
from lorakit.errors import ConfigError
from lorakit.export.consumers import check_consumer
from lorakit.families import find
from lorakit.families.base import Family
from lorakit.manifest import Record
from lorakit.recipe import Recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is known before any model is loaded."""

    base: Path
    family: Family
    items: list[dataset.Item]
    prompts: list[prompts.Prompt]
    inputs: dict[str, str]
    resolution: int
    """Side of the sampled pictures in pixels."""
    grids: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """(H, W) of the latents of each size (width, height) of picture."""
    class_items: list[dataset.Item] = field(default_factory=list)


def plan(recipe: Recipe, say: Say) -> Plan:
    """Check base, data and prompts against each other; every problem is found here, before any work."""
    base = bases.resolve(recipe.base)
    trained_text.check(recipe, find(base), ())  # what no family takes is refused before the data are read
    wanted = prompts.load(recipe.samples.prompts) if recipe.samples.prompts else []
    records = dataset.read(recipe.dataset)
    family = find(base, {one.kind for record in records for one in record.given})
    _check_exports(recipe, family)
    _check_data(recipe, family, records)
    shown.check_prompts(family, wanted)
    pipe = family.load(base, dtype=torch.float32, only={"scheduler"})
    objective_of(recipe, family, pipe)  # refuses what contradicts the base
    step = family.size_step(pipe)
    _check_resolution(recipe.resolution, step)
    items, own = dataset.plan(records, recipe.resolution, step, recipe.train.batch_size)
    if not own:
        say(f"buckets chosen for resolution {recipe.resolution}: the manifest has none that suit")
    items = dataset.with_frames(items, family, pipe, _frames(recipe, family))
    inputs = {"data": manifest.fingerprint(records), "base": bases.content_hash(base)}
    class_items: list[dataset.Item] = []
    if recipe.class_images:
        others = preserving.read(recipe, recipe.class_images)
        shown.check_records(family, recipe.class_images, others)
        class_items, _ = dataset.plan(others, recipe.resolution, step, recipe.train.batch_size)
        class_items = dataset.with_frames(class_items, family, pipe, 1)
        inputs["class_images"] = manifest.fingerprint(others)
    grids = _grids(family, pipe, [*items, *class_items])
    if recipe.init_from:
        inputs["init_from"] = storage.sha256_file(_check_first(recipe, recipe.init_from, family))
        if adapter.read_metadata(adapter.file_of(recipe.init_from))["base_hash"] != inputs["base"]:
            say("the adapter to start from was trained on another base of this family")
    return Plan(base, family, items, wanted, inputs, recipe.resolution, grids, class_items)


def _check_exports(recipe: Recipe, family: Family) -> None:
    for consumer in recipe.export:
        check_consumer(family.name, consumer)


def _check_data(recipe: Recipe, family: Family, records: list[Record]) -> None:
    dataset.check_files(recipe.dataset, records)
    preserving.check(recipe, records)
    shown.check_records(family, recipe.dataset, records)
    trained_text.check(recipe, family, (caption.text for record in records for caption in record.captions))


def _grids(family: Family, pipe: Any, items: list[dataset.Item]) -> dict[tuple[int, int], tuple[int, int]]:
    """(H, W) of the latents by size of picture; a size that the base has no positions for is refused."""
    found = {}
    for size in {item.size for item in items}:
        *_, height, width = family.latent_shape(pipe, *size)
        found[size] = (height, width)
    return found


def _frames(recipe: Recipe, family: Family) -> int:
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


def _check_first(recipe: Recipe, given: Path, family: Family) -> Path:
    """The adapter file that a new run starts from."""
    file = adapter.file_of(given)
    facts = adapter.read_metadata(file)
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


def objective_of(recipe: Recipe, family: Family, pipe: Any) -> objective.Objective:
    """The recipe's objective on a base whose scheduler is loaded; a contradiction is a `ConfigError`."""
    alphas = getattr(pipe.scheduler, "alphas_cumprod", None)
    return objective.from_scheduler(
        family.objective, pipe.scheduler.config, recipe.objective, alphas, family.token_side
    )


def split(items: list[dataset.Item], recipe: Recipe) -> tuple[list[dataset.Item], list[dataset.Item]]:
    """(held out, trained on): the share of images with the smallest keyed numbers is held out, at least one
    stays."""
    count = min(round(len(items) * recipe.validate_.fraction), len(items) - 1)
    by_draw = sorted(
        items, key=lambda i: (keyed.key(recipe.train.seed, "held out", i.record.pixels), i.record.file)
    )
    held = {id(item) for item in by_draw[:count]}
    return [i for i in items if id(i) in held], [i for i in items if id(i) not in held]
