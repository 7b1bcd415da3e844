"""From a plan to everything that training needs, in stages, so that only one part of a model is in memory at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit import adapters
from lorakit.adapters import base_fit, text_encoders
from lorakit.adapters.formats import consumers
from lorakit.adapters.formats.module_names import with_text_model_prefix
from lorakit.adapters.text_encoders import UncachedTextEncoder
from lorakit.config.recipe import Recipe, recipe_hash
from lorakit.data.dataset import TextSource, TrainingSet
from lorakit.models import device as devices
from lorakit.models import loading
from lorakit.models.families.family import Family
from lorakit.models.families.pipeline_folder import pipeline_name
from lorakit.models.memory import MemorySettings, placement, sharding
from lorakit.sampling import generate
from lorakit.training import data_warnings, memory_plan, phases
from lorakit.training.caption_stream import caption_stream
from lorakit.training.initial_adapter import load_initial_adapter
from lorakit.training.objective import Objective
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_memory import MemoryRecord
from lorakit.training.run_plan import LogFn, TrainingPlan

LoadFn = Callable[[Recipe, TrainingPlan, MemorySettings, torch.device], Any]
"""Returns a pipeline with the components that a recipe trains and samples with."""


@dataclass
class Session:
    """A run that is ready to train: the model with its adapters, the data, the prompts to sample."""

    recipe: Recipe
    memory_settings: MemorySettings
    micro_batch_size: int
    """Images of a forward pass, at most those of the recipe: as many as fit the device."""
    base_folder: Path
    family: Family
    device: torch.device
    pipe: Any
    denoiser: Any
    networks: dict[str, torch.nn.Module]
    """The networks that carry adapters, by component."""
    adapter_specs: dict[str, adapters.AdapterSpec]
    train_set: TrainingSet
    held_out_set: TrainingSet
    class_image_set: TrainingSet | None
    objective: Objective
    encoded_prompts: generate.EncodedPrompts | None
    sampling_settings: generate.SamplingSettings
    input_hashes: dict[str, str]

    def adapter_metadata(self) -> dict[str, Any]:
        """The metadata of the adapter's files; no path, no name of a person or machine."""
        return {
            **adapters.adapter_metadata(self.adapter_specs),
            **text_encoders.textual_inversion_metadata(self.recipe),
            "family": self.family.name,
            "pipeline": pipeline_name(self.base_folder),
            "base_hash": self.input_hashes["base"],
            **base_fit.prediction_metadata(self.base_folder),
            "resolution": self.recipe.resolution,
            **({"frames": self.recipe.frames} if self.family.is_video else {}),
            "trigger": ", ".join(self._learned_triggers()) or None,
            "recipe_hash": recipe_hash(self._decided_recipe()),
        }

    def _decided_recipe(self) -> Recipe:
        """The recipe with the quantization in force, whether the recipe or the planner chose it."""
        quantize = self.memory_settings.quantize or "none"
        memory = self.recipe.memory_config.model_copy(update={"quantize": quantize})
        return self.recipe.model_copy(update={"memory": memory})

    def _learned_triggers(self) -> tuple[str, ...]:
        captions = [caption.text for item in self.train_set.items for caption in item.record.captions]
        return data_warnings.triggers_in_captions(self.recipe.triggers, captions)

    def encode_prompts_now(self, encoded: generate.EncodedPrompts) -> generate.EncodedPrompts:
        """Encode the prompts again if the text encoders are trained."""
        if not text_encoders.trains_text(self.recipe):
            return encoded
        return generate.encode_prompts(self.family, self.pipe, encoded.prompts, self.sampling_settings)


def build_session(
    recipe: Recipe,
    plan: TrainingPlan,
    device: torch.device,
    *,
    main: bool,
    wait_for_everyone: Callable[[], None],
    num_processes: int = 1,
    log: LogFn = lambda text: None,
    load: LoadFn | None = None,
    shard: bool = False,
    memory_record: MemoryRecord | None = None,
) -> Session:
    """Fill the caches (in the `main` process, the others wait), load what is trained, inject the adapters.

    With `shard` the denoiser's weights are divided among the processes. The main process decides the memory
    settings of all, and `memory_record` keeps them. `load` returns the components to inject adapters into.
    """
    memory_record = memory_record or MemoryRecord()
    stream = caption_stream(recipe, plan, num_processes)
    family, run_caches = plan.family, RunCaches(recipe, plan, device, log, stream)
    if main:
        log(phases.phase("encoding images and texts that are not in the cache"))
        run_caches.fill(plan.all_items, plan.class_image_items, plan.prompts, plan.sampling_settings)
        chosen = memory_plan.decide_memory(recipe, plan, run_caches, device, log, memory_record.read())
        memory_record.write(chosen.to_json(devices.device_name(device)))
    wait_for_everyone()
    decided = memory_plan.decided_from(memory_record.read())
    log(phases.phase("loading the base model"))
    settings = sharding.with_whole_weights(decided.settings) if shard else decided.settings
    place = torch.device("cpu") if shard else device
    pipe = (load or load_trained_components)(recipe, plan, settings, place)
    specs = text_encoders.inject_adapters(recipe, family, pipe)
    _check_exports(recipe, family, specs)
    networks = _adapted_networks(recipe, plan, pipe, specs)
    if note := placement.shared_memory_note(settings, device):
        log(note)
    denoiser = _placed_denoiser(family, pipe, settings, device, shard=shard)
    text = text_source(recipe, family, pipe, run_caches)
    split = plan.split
    return Session(
        recipe=recipe,
        memory_settings=settings,
        micro_batch_size=decided.micro_batch,
        base_folder=plan.base_folder,
        family=family,
        device=device,
        pipe=pipe,
        denoiser=denoiser,
        networks=networks,
        adapter_specs=specs,
        train_set=run_caches.training_set(split.train, text),
        held_out_set=run_caches.training_set(split.held_out, text, repeated=False),
        class_image_set=run_caches.class_image_set(plan.class_image_items, text),
        objective=plan.objective,
        encoded_prompts=_encoded_prompts(plan, run_caches, text) if plan.prompts else None,
        sampling_settings=plan.sampling_settings,
        input_hashes=plan.input_hashes,
    )


def _placed_denoiser(
    family: Family, pipe: Any, settings: MemorySettings, device: torch.device, *, shard: bool
) -> Any:
    """Return the denoiser with its memory settings in force; with `shard`, divided among the processes."""
    denoiser = family.denoiser(pipe)
    placement.place(denoiser, settings, torch.device("cpu") if shard else device)
    if shard:
        sharding.shard_network(denoiser, device)
        pipe.to(device)
    return denoiser


def _adapted_networks(
    recipe: Recipe, plan: TrainingPlan, pipe: Any, specs: Mapping[str, adapters.AdapterSpec]
) -> dict[str, torch.nn.Module]:
    """Return the networks that carry adapters, by component; the adapters have their first values."""
    adaptable = text_encoders.adaptable_networks(plan.family, pipe)
    networks = {component: network for component, network in adaptable.items() if component in specs}
    if plan.initial_adapter:
        load_initial_adapter(plan.initial_adapter.adapter, networks)
    for network in networks.values():  # what is trained stays in float32 until it gets its buffer
        adapters.cast_adapter(network, devices.compute_dtype(recipe.train.precision), only_frozen=True)
    return networks


def text_source(recipe: Recipe, family: Family, pipe: Any, run_caches: RunCaches) -> TextSource:
    """The source of text embeddings: the cache, the text encoders in `pipe` if they are trained, or ones that
    are loaded for captions that change with each use and do not fit the cache."""
    if text_encoders.trains_text(recipe):
        return UncachedTextEncoder(family, pipe)
    return run_caches.text_at_use() if run_caches.encodes_at_use else run_caches.text


def _check_exports(recipe: Recipe, family: Family, specs: Mapping[str, adapters.AdapterSpec]) -> None:
    """Refuse an adapter that could not be exported as asked, before it is trained."""
    modules = [
        f"{family.components.denoiser if component in family.components.experts else component}"
        f".{with_text_model_prefix(name)}"
        for component, spec in specs.items()
        for name in spec.target_modules
    ]
    for consumer in recipe.export:
        if consumers.unsupported_modules(family.name, consumer, modules):
            raise consumers.unsupported_error(family.name, consumer, modules, "export")


def load_trained_components(
    recipe: Recipe, plan: TrainingPlan, settings: MemorySettings, device: torch.device
) -> Any:
    """Load the denoiser, and what samples and trained text encoders need beside it, as a pipeline."""
    family = plan.family
    components = {*family.denoiser_components(plan.base_folder), "scheduler"}
    if plan.prompts:
        components |= loading.sampling_components(family, plan.base_folder)
    if text_encoders.trains_text(recipe):
        components |= loading.text_components(family, plan.base_folder)
    return loading.load_components(
        family,
        plan.base_folder,
        components,
        dtype=devices.compute_dtype(recipe.train.precision),
        device=device,
        settings=settings,
    )


def _encoded_prompts(plan: TrainingPlan, run_caches: RunCaches, text: TextSource) -> generate.EncodedPrompts:
    if isinstance(text, UncachedTextEncoder):  # they are encoded when they are sampled
        return generate.EncodedPrompts(plan.prompts, [], [])
    return run_caches.encoded_prompts(plan.prompts, plan.sampling_settings)
