"""From a recipe to a plan: base, data and prompts are checked against each other before a model is loaded.

The plan is made once; what it finds (base folder, family, images, objective) is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters import planning, text_encoders
from lorakit.adapters.formats.consumers import check_consumer
from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError
from lorakit.data import conditioning, fingerprints, prompts
from lorakit.data.items import (
    ConceptRecords,
    DatasetItem,
    check_unchanged,
    load_concepts,
    plan_items,
    select_frames,
)
from lorakit.data.subjects import concept_subjects
from lorakit.models import base_model
from lorakit.models.families import detect_family
from lorakit.models.families.family import Family
from lorakit.models.families.pipeline_folder import pipeline_components
from lorakit.sampling.generate import SamplingSettings
from lorakit.sampling.prompt_settings import resolve_sizes
from lorakit.sampling.saved_samples import check_mode
from lorakit.training import (
    caption_checks,
    data_folders,
    data_warnings,
    held_out,
    objective,
    regularization,
)
from lorakit.training.concept_checks import concept_warnings
from lorakit.training.held_out import DataSplit
from lorakit.training.initial_adapter import InitialAdapter, check_initial_adapter

LogFn = Callable[[str], None]


@dataclass(frozen=True)
class DataPlan:
    """The images of a run's dataset on its base model, and the objective."""

    base_folder: Path
    family: Family
    objective: objective.Objective
    items: list[DatasetItem]
    """The images of the dataset, held-out ones included."""
    split: DataSplit
    latent_sizes: Mapping[tuple[int, int], tuple[int, int]]
    """(height, width) of the latents of each bucket (width, height)."""

    @property
    def all_items(self) -> list[DatasetItem]:
        """The images of the dataset and, from `validate.folder`, those that are only validated on."""
        of_dataset = {id(item) for item in self.items}
        return [*self.items, *(item for item in self.split.held_out if id(item) not in of_dataset)]


@dataclass(frozen=True)
class TrainingPlan(DataPlan):
    """Everything that is known of a run before a model is loaded."""

    class_image_items: list[DatasetItem]
    prompts: list[prompts.Prompt]
    sampling_settings: SamplingSettings
    """Settings of the samples whose prompts have none of their own."""
    native_side: int | None
    """Side in pixels of the square images that the base model was trained on; None if it does not say."""
    input_hashes: dict[str, str]
    """Hashes of dataset, base, class images, held-out images and first adapter, by recipe key."""
    initial_adapter: InitialAdapter | None = None
    """The adapter of `init_from`."""


def plan_training(recipe: Recipe, log: LogFn) -> TrainingPlan:
    """Check base, data and prompts against each other; raises for every problem before any work is done."""
    base_folder = base_model.resolve_base(recipe.base)
    subjects, file = concept_subjects(recipe.concepts), recipe.samples.prompts
    sample_prompts = prompts.load_prompts(file, subjects, log) if file else []
    if file:
        check_mode(recipe.samples.provenance)
    concepts = load_concepts(recipe.concepts)
    for warning in (
        *data_warnings.data_warnings(concepts),
        *concept_warnings(concepts),
        *caption_checks.caption_use_warnings(concepts),
    ):
        log(f"warning: {warning}")
    records = [record for concept in concepts for record in concept.records]
    kinds = conditioning.conditioning_types(records, generated=recipe.use_generated_controls)
    family = detect_family(base_folder, kinds)
    for consumer in recipe.export:
        check_consumer(family.name, consumer)
    conditioning.check_prompt_conditioning(family, sample_prompts)
    pipe = family.load(base_folder, dtype=torch.float32, only={"scheduler"})
    data = plan_data(recipe, base_folder, family, pipe, concepts, log)
    settings = _sampling_settings(recipe)
    sample_prompts, notes = resolve_sizes(family, pipe, sample_prompts, settings)
    for note in notes:
        log(note)
    class_images = _load_class_images(recipe, family)
    class_items = _plan_images(recipe, family, pipe, class_images, max_frames=1)
    for note in (
        *held_out.summary(data.split, recipe),
        *held_out.leakage_notes(data.split.held_out, data.split.train, class_items),
        *conditioning.still_source_warnings(family, data.items),
    ):
        log(note)
    input_hashes = _data_fingerprints(recipe, family, [*concepts, *class_images])
    if recipe.validate_.holds_out:  # near duplicates, which are not in the dataset's fingerprint, decide it
        held_out_records = [item.record for item in data.split.held_out]
        input_hashes["held_out"] = fingerprints.dataset_fingerprint(held_out_records)
    if sources := caption_checks.sources_hash(concepts):
        input_hashes["caption_sources"] = sources
    input_hashes["base"] = base_model.base_hash(base_folder)
    planned, initial = planning.plan_adapters(recipe, family, base_folder, log), None
    if recipe.init_from:
        initial = check_initial_adapter(recipe, recipe.init_from, planned, family, base_folder, log)
        input_hashes["init_from"] = initial.content_hash
    return TrainingPlan(
        base_folder=base_folder,
        family=family,
        objective=data.objective,
        items=data.items,
        split=data.split,
        latent_sizes={**data.latent_sizes, **_latent_sizes(family, pipe, class_items)},
        class_image_items=class_items,
        prompts=sample_prompts,
        sampling_settings=settings,
        native_side=family.native_side(pipe),
        input_hashes=input_hashes,
        initial_adapter=initial,
    )


def _sampling_settings(recipe: Recipe) -> SamplingSettings:
    samples, side = recipe.samples, recipe.resolution
    return SamplingSettings(
        side, side, samples.num_inference_steps, samples.guidance_scale, num_frames=recipe.frames
    )


def plan_data(
    recipe: Recipe,
    base_folder: Path,
    family: Family,
    pipe: Any,
    concepts: Sequence[ConceptRecords],
    log: LogFn,
) -> DataPlan:
    """Plan the images of the recipe's dataset on a base of which at least the scheduler is loaded.

    Raises ConfigError for settings that contradict the base, DataError for images that cannot be used.
    """
    concepts = [_without_unused_images(family, data, log) for data in concepts]
    _check_data(recipe, base_folder, family, concepts)
    built = build_objective(recipe, family, pipe)
    _check_resolution(recipe.resolution, family.size_multiple(pipe))
    _check_frames(recipe, family)
    items = _plan_images(recipe, family, pipe, concepts, max_frames=recipe.frames, log=log)
    split = held_out.split_dataset(items, recipe)
    if concept := data_folders.validation_concept(recipe):
        others = [_without_unused_images(family, data, log) for data in load_concepts([concept])]
        _check_files(family, others)
        split.held_out.extend(_plan_images(recipe, family, pipe, others, max_frames=recipe.frames, log=log))
        held_out.check_separate(split.held_out, items)
    sizes = _latent_sizes(family, pipe, [*items, *split.held_out])
    return DataPlan(base_folder, family, built, items, split, sizes)


def _plan_images(
    recipe: Recipe,
    family: Family,
    pipe: Any,
    concepts: Sequence[ConceptRecords],
    *,
    max_frames: int,
    log: LogFn = lambda text: None,
) -> list[DatasetItem]:
    """Plan the images of each folder by itself, so that other folders do not change its buckets."""
    size_multiple, items = family.size_multiple(pipe), []
    for data in concepts:
        planned = plan_items(data, recipe.resolution, size_multiple, recipe.train.batch_size)
        if not planned.from_manifest:
            log(
                f"{data.concept.folder.name}: buckets chosen for resolution {recipe.resolution}: the manifest"
                " has none that suit"
            )
        items += select_frames(planned.items, family, pipe, max_frames)
    return items


def _load_class_images(recipe: Recipe, family: Family) -> list[ConceptRecords]:
    loaded = [
        _without_unused_images(family, regularization.load_class_records(recipe, concept))
        for concept in data_folders.class_concepts(recipe)
    ]
    for data in loaded:
        conditioning.check_record_conditioning(family, data.concept.folder, data.records)
    return loaded


def _data_fingerprints(recipe: Recipe, family: Family, concepts: Sequence[ConceptRecords]) -> dict[str, str]:
    """Return the fingerprints of the folders that decide the adapter, by recipe key."""
    by_folder = {
        data.concept.folder: fingerprints.dataset_fingerprint(_without_unused_images(family, data).records)
        for data in concepts
    }
    return {key: by_folder[folder] for key, folder in recipe.data_folders.items()}


def _without_unused_images(
    family: Family, data: ConceptRecords, log: LogFn = lambda text: None
) -> ConceptRecords:
    return ConceptRecords(data.concept, conditioning.without_unused_images(family, data.records, log))


def _check_data(
    recipe: Recipe, base_folder: Path, family: Family, concepts: Sequence[ConceptRecords]
) -> None:
    captions = [caption for data in concepts for caption in data.captions]
    text_encoders.check_text_training(recipe, family, captions, pipeline_components(base_folder))
    _check_files(family, concepts)
    caption_checks.check_caption_use(concepts)
    regularization.check_objective_data(recipe, concepts)


def _check_files(family: Family, concepts: Sequence[ConceptRecords]) -> None:
    for data in concepts:
        check_unchanged(data.concept.folder, data.records)
        conditioning.check_record_conditioning(family, data.concept.folder, data.records)


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


def build_objective(recipe: Recipe, family: Family, pipe: Any) -> objective.Objective:
    """The recipe's objective on a base whose scheduler is loaded; a contradiction is a `ConfigError`."""
    alphas_cumprod = getattr(pipe.scheduler, "alphas_cumprod", None)
    return objective.objective_from_scheduler(
        family.objective, pipe.scheduler.config, recipe.objective, alphas_cumprod, family.shift_patch_size
    )
