"""Images and losses of the base model, a run's variants and guests; the base model is loaded only here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorakit import adapters
from lorakit.adapters.sources import AdapterSource
from lorakit.config.recipe import Recipe
from lorakit.core import checksums
from lorakit.core.errors import ConfigError, DataError, first_line
from lorakit.core.progress import print_line
from lorakit.data.prompts import Prompt
from lorakit.evaluation.checkpoints import CheckpointVariant
from lorakit.evaluation.guests import Guest
from lorakit.evaluation.sampling_estimate import SamplingMeter, describe_work, estimate_disk
from lorakit.evaluation.score_table import BASE
from lorakit.evaluation.scoring_inputs import VariantSamples
from lorakit.evaluation.validation_loss import RunValidation
from lorakit.evaluation.variant_origin import VariantOrigin
from lorakit.evaluation.variant_sampler import SamplingTask, VariantSampler
from lorakit.models import device as devices
from lorakit.models import loading
from lorakit.sampling.generate import SamplingSettings
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline, resolve_quantization

_Losses = Mapping[str, list[float]]


@dataclass
class RunPlan:
    """The run's recipe, prompts, variants and guests, and notes about anything that cannot be measured."""

    run: Path
    recipe: Recipe
    prompts: list[Prompt]
    variants: list[CheckpointVariant]
    guests: list[Guest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """The number of images of all variants, the base model's and the guests'."""
        per_variant = sum(len(prompt.seeds) for prompt in self.prompts)
        return per_variant * (1 + len(self.variants) + len(self.guests))


@dataclass(frozen=True)
class PipelineFacts:
    """Facts for the report about the loaded pipeline: settings of the images, size of the adapter, notes."""

    settings: dict[str, Any]
    size: adapters.AdapterSize
    family_title: str
    notes: list[str]


def load_run_pipeline(
    recipe: Recipe, adapter: Path | AdapterSource, options: SamplingOptions
) -> SamplingPipeline:
    """Load the base model in the precision of the run, so that the validation loss equals the training's."""
    device, precision = devices.default_device(), recipe.train.precision
    return SamplingPipeline(
        recipe.base,
        adapter if isinstance(adapter, Path) else [adapter],
        quantize=resolve_quantization(options, recipe.memory_config.quantize),
        stream=(recipe.memory_config.stream or 0.0) if options.stream is None else options.stream,
        device=device,
        dtype=devices.compute_dtype(precision),
    )


class RunSampler:
    """Samples the variants of a plan. The base model is in memory during `sample` only."""

    def __init__(
        self, plan: RunPlan, options: SamplingOptions, root: Path, *, with_losses: bool, is_race: bool = False
    ) -> None:
        self.plan, self.options, self.root, self.with_losses = plan, options, root, with_losses
        self.meter = SamplingMeter(quiet=options.quiet, is_race=is_race)
        self.facts: PipelineFacts | None = None
        self._fixed_options = options
        self._losses: dict[str, _Losses] = {}
        self._has_loaded_validation = False

    def sample(
        self,
        prompts: Sequence[Prompt],
        variants: Sequence[CheckpointVariant],
        guests: Sequence[Guest] = (),
        listed: Sequence[Prompt] = (),
    ) -> list[VariantSamples]:
        """Sample the prompts with the base model, the variants and the guests; the base model comes first.

        `listed` are the prompts of the folders' lists, if `prompts` are only a part of them.
        """
        tasks = {variant.name: _variant_task(variant, prompts) for variant in variants}
        guest_tasks = {guest.name: _guest_task(guest, prompts) for guest in guests}
        base_task = SamplingTask(BASE, BASE, prompts)
        with self._loaded(self.plan.variants[0].file, self.options) as sampler:
            self._announce(sampler, [base_task, *tasks.values(), *guest_tasks.values()])
            self._fixed_options = _fix_size(self.options, sampler.pipeline)
            samples = self._sample_run(
                sampler, base_task, list(zip(variants, tasks.values(), strict=True)), listed
            )
        return samples + self._sample_guests(guests, guest_tasks)

    def sample_guests(self, prompts: Sequence[Prompt], guests: Sequence[Guest]) -> list[VariantSamples]:
        """Sample the prompts with guests only, after `sample`."""
        return self._sample_guests(guests, {guest.name: _guest_task(guest, prompts) for guest in guests})

    def _sample_guests(
        self, guests: Sequence[Guest], tasks: Mapping[str, SamplingTask]
    ) -> list[VariantSamples]:
        return [self._sample_guest(guest, tasks[guest.name]) for guest in guests]

    def _sample_run(
        self,
        sampler: VariantSampler,
        base_task: SamplingTask,
        tasks: Sequence[tuple[CheckpointVariant, SamplingTask]],
        listed: Sequence[Prompt],
    ) -> list[VariantSamples]:
        """Sample the base model and the variants with the pipeline of the run, and measure their losses."""
        pipeline = sampler.pipeline
        validation = self._load_validation(pipeline)
        with pipeline.adapter_disabled():
            samples = [VariantSamples(BASE, sampler.sample(base_task, listed))]
            samples[0].losses = dict(self._measure_losses(BASE, validation))
        for number, (variant, task) in enumerate(tasks, 1):
            pipeline.load_adapter(variant.file, variant.strength)
            files = sampler.sample(task, listed)
            losses = dict(self._measure_losses(variant.name, validation))
            file = variant.file.relative_to(self.plan.run).as_posix()
            origin = VariantOrigin(file, task.adapter_hash or "")
            samples.append(
                VariantSamples(variant.name, files, variant.step, variant.strength, losses, origin)
            )
            self.meter.variant_done(variant.name, number, len(tasks))
        return samples

    @contextlib.contextmanager
    def _loaded(self, adapter: Path | AdapterSource, options: SamplingOptions) -> Iterator[VariantSampler]:
        """Load the base model with an adapter, and free its memory afterwards."""
        pipeline = load_run_pipeline(self.plan.recipe, adapter, options)
        device = pipeline.device
        sampler = VariantSampler(pipeline, options, self.root, self.meter, self.plan.recipe.base)
        del pipeline
        try:
            yield sampler
        finally:
            del sampler.pipeline
            loading.free_memory(device)

    def _announce(self, sampler: VariantSampler, tasks: Sequence[SamplingTask]) -> None:
        """Print the number of images and the disk that they need, and note what the report says."""
        settings = sampler.pipeline.settings(self.options)
        if self.facts is None:
            size = adapters.count_trainable(*sampler.pipeline.networks.values())
            self.facts = PipelineFacts(
                _sampling_settings(sampler.pipeline, self.options),
                size,
                sampler.pipeline.family.title,
                [*sampler.pipeline.notes, *_own_settings_notes(self.plan.prompts, settings)],
            )
        missing = sum(sampler.count_missing(task) for task in tasks)
        total = sum(len(prompt.seeds) for task in tasks for prompt in task.prompts)
        self.meter.total = self.meter.done + missing
        if not self.options.quiet:
            existing = [*self.root.rglob("*.png"), *(self.plan.run / "samples").rglob("*.png")]
            disk = estimate_disk(existing, settings.width, settings.height, settings.num_frames)
            print_line(describe_work(missing, total, disk, self.root))

    def _load_validation(self, pipeline: SamplingPipeline) -> RunValidation | None:
        recipe = self.plan.recipe
        if not self.with_losses or not recipe.validate_.enabled or self._has_loaded_validation:
            return None
        self._has_loaded_validation = True
        try:
            validation = RunValidation(recipe, pipeline)
        except (DataError, ConfigError) as error:
            self.plan.notes.append(f"The validation loss is not measured: {first_line(error)}.")
            return None
        return None if validation.is_empty else validation

    def _measure_losses(self, name: str, validation: RunValidation | None) -> _Losses:
        """Return the losses with the adapter that is loaded now; each variant's are measured once."""
        if validation and name not in self._losses:
            self._losses[name] = validation.image_losses()
        return self._losses.get(name, {})

    def _sample_guest(self, guest: Guest, task: SamplingTask) -> VariantSamples:
        with self._loaded(guest.source, self._fixed_options) as sampler:
            files = sampler.sample(task)
            self.plan.notes += [note for note in sampler.pipeline.notes if note not in self.plan.notes]
        # scored against the prompts of the run: its own have another trigger word, and the same meaning
        by_id = {prompt.id: prompt for prompt in self.plan.prompts}
        files = [replace(file, prompt=by_id[file.prompt.id]) for file in files]
        origin = VariantOrigin(str(guest.source.path), task.adapter_hash or "", True, guest.trigger)
        return VariantSamples(guest.name, files, None, guest.source.strength, {}, origin)


def _fix_size(options: SamplingOptions, pipeline: SamplingPipeline) -> SamplingOptions:
    """Return the options with the size of the run's images, which a guest's metadata must not change."""
    settings = pipeline.settings(options)
    return replace(options, size=(settings.width, settings.height), num_frames=settings.num_frames)


def _variant_task(variant: CheckpointVariant, prompts: Sequence[Prompt]) -> SamplingTask:
    adapter_hash = checksums.sha256_file(variant.file)
    return SamplingTask(variant.name, variant.folder, prompts, adapter_hash, variant.strength)


def _guest_task(guest: Guest, prompts: Sequence[Prompt]) -> SamplingTask:
    adapter_hash = checksums.sha256_file(guest.source.weights_file)
    own = [guest.own_prompt(prompt) for prompt in prompts]
    return SamplingTask(guest.name, guest.folder, own, adapter_hash, guest.source.strength)


def _own_settings_notes(prompts: Sequence[Prompt], settings: SamplingSettings) -> list[str]:
    """Return a note about the prompts whose images have other settings than the report's."""
    number = sum(
        settings.for_prompt(prompt) != settings or prompt.aspect_ratio is not None for prompt in prompts
    )
    if not number:
        return []
    return [f"{number} of {len(prompts)} prompts have their own size, steps or guidance, of the prompt file."]


def _sampling_settings(pipeline: SamplingPipeline, options: SamplingOptions) -> dict[str, Any]:
    settings = pipeline.settings(options)
    control = options.control
    return {
        "width": settings.width,
        "height": settings.height,
        "sampler": settings.sampler or type(pipeline.pipe.scheduler).__name__,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "quantize": pipeline.quantize,
        "image_guidance": {"type": control.type, "scale": control.scale} if control else None,
    }
