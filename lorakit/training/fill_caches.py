"""The caches of a run, filled before it: on this machine, one part of them, or by Ray on every GPU.

An entry is found by the hash of everything that decides it, so it does not matter which machine wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.adapters import text_encoders
from lorakit.config.recipe import Recipe
from lorakit.core import ray_data
from lorakit.core.progress import Progress, print_line, silent
from lorakit.core.shards import Shard
from lorakit.data.items import DatasetItem
from lorakit.models import base_model, cache_size
from lorakit.models import device as devices
from lorakit.training.caption_stream import caption_stream
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_plan import DataPlan, LogFn, TrainingPlan, plan_training
from lorakit.training.run_precision import with_precision

IMAGES_AT_A_TIME = 64  # for which a worker loads the text encoders and the VAE once


@dataclass(frozen=True)
class FilledCaches:
    """Number of images of a run (or of its shard), how many were not in the cache; its folder and its size.

    The size is that of each part of the folder in bytes, with the entries of all other runs.
    """

    num_images: int
    num_missing: int
    folder: Path
    sizes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for scripts."""
        return {
            "images": self.num_images,
            "encoded": self.num_missing,
            "cache": str(self.folder),
            "cache_bytes": self.sizes,
        }

    def summary(self) -> str:
        """Return two lines for people."""
        known = self.num_images - self.num_missing
        size = cache_size.describe_sizes(self.sizes)
        return (
            f"{self.num_missing} images encoded, {known} were in the cache {self.folder}\ncache size: {size}"
        )


def fill_caches(
    recipe: Recipe, log: LogFn, *, ray_address: str | None = None, shard: str | None = None
) -> FilledCaches:
    """Encode the images, captions and prompts of a recipe that are not in the cache.

    With `shard`, such as "2/8", only every eighth image; with `ray_address`, the address of a cluster or
    "local", Ray Data encodes them on every GPU. A training with this recipe then encodes nothing.
    """
    recipe = with_precision(recipe)
    plan = plan_training(recipe, log)
    items, class_items, prompts, stream = plan.all_items, plan.class_image_items, plan.prompts, None
    if shard is not None:
        part = Shard.parse(shard)
        items, class_items = list(part.part(items)), list(part.part(class_items))
        prompts = list(part.part(prompts))
    else:
        stream = caption_stream(recipe, plan, 1)
    caches = RunCaches(recipe, plan, devices.default_device(), log, stream)
    missing = _missing_items(caches, items)
    if ray_address is not None and missing:
        _fill_with_ray(recipe, plan, missing, ray_address)
        if lost := len(_missing_items(caches, items)):
            print_line(
                f"warning: {lost} images that Ray encoded are not in this machine's cache; they are encoded"
                " again: set LORAKIT_CACHE to a folder that all machines share"
            )
    caches.fill(items, class_items, prompts, plan.sampling_settings)
    folder = base_model.cache_folder()
    return FilledCaches(len(items), len(missing), folder, cache_size.cache_sizes(folder))


def _missing_items(caches: RunCaches, items: Sequence[DatasetItem]) -> list[DatasetItem]:
    """Return the items whose image, conditioning images or captions are not in the cache."""
    images = caches.images
    incomplete = {id(item) for item in (*images.latents.missing(items), *images.conditioning.missing(items))}
    texts = not text_encoders.trains_text(caches.recipe)
    return [item for item in items if id(item) in incomplete or (texts and caches.lacks_text(item))]


def _fill_with_ray(recipe: Recipe, plan: TrainingPlan, items: Sequence[DatasetItem], address: str) -> None:
    data_plan = DataPlan(
        plan.base_folder, plan.family, plan.objective, plan.items, plan.split, plan.latent_sizes
    )
    arguments = (recipe, data_plan, str(base_model.cache_folder().resolve()))
    chunk = IMAGES_AT_A_TIME
    with Progress("images", len(items)) as progress:
        for number, _ in enumerate(
            ray_data.map_on_workers(address, _CacheWorker, arguments, items, chunk), 1
        ):
            progress.update(number)


class _CacheWorker:
    """Encodes images and captions in a worker of Ray, into the shared cache."""

    def __init__(self, recipe: Recipe, plan: DataPlan, cache_folder: str) -> None:
        os.environ[base_model.CACHE_VARIABLE] = cache_folder  # of this process, which does nothing else
        self._caches = RunCaches(recipe, plan, devices.default_device(), lambda text: None)

    def __call__(self, items: list[DatasetItem]) -> list[dict[str, Any]]:
        with silent():
            self._caches.fill(items)
        return [{} for _ in items]
