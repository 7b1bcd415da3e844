"""The memory settings of a run: those of its recipe, and the planner's for what it leaves out.

They are decided once, before anything is loaded, and recorded in run.json. Quantization changes results: it
stays for the whole run, also for its evaluation. The other settings stay on the same device, and are planned
again on another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit import adapters
from lorakit.adapters import planning, text_encoders
from lorakit.config.recipe import Recipe, change_recipe
from lorakit.core.errors import ConfigError
from lorakit.data.items import DatasetItem
from lorakit.models import device as devices
from lorakit.models import loading
from lorakit.models.families.family import Family
from lorakit.models.families.video import VideoFamily
from lorakit.models.memory import MemorySettings, format_bytes
from lorakit.planner import networks
from lorakit.planner.choice import QUANTIZATIONS, Choice, FixedSettings, choose
from lorakit.planner.demand import RunDemand
from lorakit.planner.machine import free_bytes, this_machine
from lorakit.planner.network_count import CountError, NetworkCount, Shapes, count_network
from lorakit.planner.text_shapes import text_shapes
from lorakit.training import phases, run_memory
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_plan import DataPlan, LogFn

QUICK_SHARE = 0.8  # of the free memory, below which nothing needs to be counted


@dataclass(frozen=True)
class DecidedMemory:
    """The settings of a run, and the images of a forward pass."""

    settings: MemorySettings
    micro_batch: int
    choice: Choice | None = None
    """The planner's choice; None if there was nothing to choose."""

    def to_json(self, device: str) -> dict[str, Any]:
        """Return the entry of run.json."""
        values: dict[str, Any] = {
            "device": device,
            "settings": self.settings.to_json(),
            "images_at_once": self.micro_batch,
        }
        if self.choice:
            values["predicted"] = {
                "peak_bytes": self.choice.best.footprint.total,
                "step_seconds": self.choice.best.step.to_json()["total"],
            }
        return values


def decide_memory(
    recipe: Recipe,
    plan: DataPlan,
    caches: RunCaches,
    device: torch.device,
    log: LogFn,
    recorded: Mapping[str, Any] | None = None,
) -> DecidedMemory:
    """Decide the memory settings of a run on a device; `recorded` is the entry `memory` of its run.json."""
    fixed, batch = fixed_settings(recipe), recipe.train.batch_size
    if recorded:
        known = run_memory.recorded_settings(recorded)
        same_device = recorded["device"] == devices.device_name(device)
        fixed = _with_recorded(fixed, known, keep_all=same_device)
        batch = min(batch, int(recorded["images_at_once"]))
    if all(value is not None for value in vars(fixed).values()) or _fits_plainly(recipe, plan, device):
        return DecidedMemory(_plain_settings(fixed), batch)
    log(phases.phase("planning the memory"))
    machine = this_machine(device)
    demand, _ = count_target(recipe, target_of(plan), device, _cached_shapes(caches, plan))
    choice = choose(demand, machine, fixed, quantizations=usable_quantizations(recipe), micro_batch=batch)
    log(f"memory: {describe_choice(choice)}")
    return DecidedMemory(choice.best.settings, choice.best.micro_batch, choice)


def decided_from(entry: Mapping[str, Any] | None) -> DecidedMemory:
    """Return what the main process of this run has decided, from the entry in run.json."""
    assert entry is not None
    return DecidedMemory(run_memory.recorded_settings(entry), int(entry["images_at_once"]))


def describe_choice(choice: Choice) -> str:
    """Return a line for the log: settings, predicted peak memory and time."""
    best = choice.best
    settings = [f"{key}={value}" for key, value in best.settings.to_json().items() if value]
    peak, words = format_bytes(best.footprint.total), ", ".join(settings) or "nothing needs to be saved"
    return f"{words} (predicted: peak {peak}, {best.step.total:.2g} s a step)"


def fixed_settings(recipe: Recipe) -> FixedSettings:
    """Return what the recipe's section `memory` decides."""
    config = recipe.memory_config
    keys = ("quantize", "stream", "gradient_checkpointing", "offload_activations", "offload_modulation")
    return FixedSettings(**{key: getattr(config, key) for key in keys})


def _with_recorded(fixed: FixedSettings, known: MemorySettings, *, keep_all: bool) -> FixedSettings:
    """Add the settings of an earlier session where the recipe says nothing."""
    values: dict[str, Any] = {"quantize": known.quantize or "none"}
    if keep_all:
        values |= {key: value for key, value in known.to_json().items() if key != "quantize"}
    return replace(fixed, **{key: value for key, value in values.items() if getattr(fixed, key) is None})


def _plain_settings(fixed: FixedSettings) -> MemorySettings:
    """Return the fixed settings, and none for the rest."""
    quantize = None if fixed.quantize in (None, "none") else fixed.quantize
    return MemorySettings(
        quantize=quantize,  # type: ignore[arg-type]
        stream=fixed.stream or 0.0,
        gradient_checkpointing=fixed.gradient_checkpointing or 0.0,
        offload_activations=bool(fixed.offload_activations),
        offload_modulation=bool(fixed.offload_modulation),
    )


def usable_quantizations(recipe: Recipe) -> list[str | None]:
    """Return the quantizations that the recipe can have: an adapter may need full weights."""
    usable: list[str | None] = []
    for kind in QUANTIZATIONS:
        try:
            change_recipe(recipe, [f"memory.quantize={kind or 'none'}"])
        except ConfigError:
            continue
        usable.append(kind)
    return usable


def _fits_plainly(recipe: Recipe, plan: DataPlan, device: torch.device) -> bool:
    """Return True if a bound many times too large, which takes milliseconds, fits the memory."""
    family, folder = plan.family, plan.base_folder
    names = family.denoiser_components(folder)
    itemsize = devices.compute_dtype(recipe.train.precision).itemsize
    weights = sum(networks.component_bytes(folder, [*names, "vae"], itemsize).values())
    shape = _largest_latents(plan)
    positions = math.prod(shape[1:]) + 512
    bound = networks.activation_bound(folder, names, positions, itemsize) * recipe.train.batch_size
    adapter = 16 * weights // itemsize if recipe.adapter.rank > 64 else weights
    free = free_bytes(device)
    return weights + bound + 4 * adapter <= QUICK_SHARE * free


@dataclass(frozen=True)
class CountTarget:
    """The network and the image that a run is counted with."""

    family: Family
    base_folder: Path
    image: tuple[int, int]
    """Width and height of the largest bucket."""
    latents: tuple[int, ...]
    """Shape of its latents."""
    captions: Sequence[str]
    mean_area: float
    """Mean area of the images, as a share of the largest."""


def target_of(plan: DataPlan) -> CountTarget:
    """Return the image of a dataset that needs most memory."""
    item = _largest_item(plan)
    areas = [one.bucket[0] * one.bucket[1] for one in plan.items]
    captions = [one.record.caption for one in plan.items[:200]]
    mean_area = sum(areas) / len(areas) / max(areas)
    return CountTarget(
        plan.family, plan.base_folder, item.bucket, _largest_latents(plan), captions, mean_area
    )


def _largest_item(plan: DataPlan) -> DatasetItem:
    return max(plan.items, key=lambda item: item.bucket[0] * item.bucket[1] * max(1, len(item.frame_indices)))


def _largest_latents(plan: DataPlan) -> tuple[int, ...]:
    pipe = plan.family.load(plan.base_folder, dtype=torch.float32, only={"scheduler"})
    item = _largest_item(plan)
    if isinstance(plan.family, VideoFamily) and len(item.frame_indices) > 1:
        return plan.family.latent_shape(pipe, *item.bucket, len(item.frame_indices))
    return plan.family.latent_shape(pipe, *item.bucket)


def _cached_shapes(caches: RunCaches, plan: DataPlan) -> Shapes | None:
    """Return the shapes of the conditioning of the largest image; None if it is not in the caches."""
    item = _largest_item(plan)
    request = caches.images.text_request(item.record.caption, item)
    text = caches.text.find(request)
    if text is None:
        return None
    tensors = {**text, **caches.images.conditioning[item]}
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def count_target(
    recipe: Recipe, target: CountTarget, device: torch.device, shapes: Shapes | None = None
) -> tuple[RunDemand, Shapes]:
    """Count a run; `shapes` are those of its conditioning, where they are in the caches."""
    if shapes is None:
        shapes = text_shapes(target.family, target.base_folder, target.captions, target.image)
    dtype = devices.compute_dtype(recipe.train.precision)
    network = _count(recipe, target, shapes, dtype)
    others, trained = _other_networks(recipe, target.family, target.base_folder, dtype.itemsize)
    return demand_of(recipe, network, others, trained, target.mean_area), shapes


def demand_of(
    recipe: Recipe, network: NetworkCount, others: Mapping[str, int], others_trained: int, mean_area: float
) -> RunDemand:
    """Return what a recipe needs with a counted network."""
    return RunDemand(
        network=network,
        batch_size=recipe.train.batch_size,
        accumulate=recipe.train.accumulate,
        steps=recipe.train.steps,
        optimizer=recipe.optimizer.name,
        averaged=recipe.train.ema_decay is not None,
        others=others,
        others_trained=others_trained,
        mean_area=mean_area,
        passes=1.0
        + any(concept.class_images for concept in recipe.concepts)
        + 0.4 * bool(recipe.objective.output_preservation),
    )


def _count(recipe: Recipe, target: CountTarget, shapes: Shapes, dtype: torch.dtype) -> NetworkCount:
    family, folder = target.family, target.base_folder
    specs = planning.plan_adapters(recipe, family, folder, lambda text: None).specs
    experts = [name for name in specs if name in family.components.experts]

    def inject(network: nn.Module) -> None:
        parts = {family.components.denoiser: network}
        if experts:
            parts = {name: getattr(network, name) for name in (family.components.denoiser, *experts)}
        for name, part in parts.items():
            if name in specs:
                adapters.inject_adapter(part, spec=without_initial_weights(specs[name]))

    def build() -> nn.Module:
        return networks.build_denoiser(family, folder)

    try:
        return count_network(family, build, inject, target.latents, shapes, dtype=dtype, image=target.image)
    except CountError:
        network, patch_size = build(), family.latents.patch_size
        counted = networks.assumed_count(
            network, target.latents, patch_size, shapes, trained=0, itemsize=dtype.itemsize
        )
        inject(network)
        trained = adapters.count_trainable(network).num_parameters
        return replace(counted, trained=trained, image=target.image)


def without_initial_weights(spec: adapters.AdapterSpec) -> adapters.AdapterSpec:
    """Return an adapter of the same shapes that does not read the base model's weights."""
    return replace(spec, init="kaiming") if spec.starts_from_weight else spec


def _other_networks(
    recipe: Recipe, family: Family, folder: Path, itemsize: int
) -> tuple[dict[str, int], int]:
    """Return the bytes of the networks beside the denoiser that stay loaded, and what is trained in them."""
    names: list[str] = []
    if recipe.samples.prompts is not None:
        names += ["vae", *family.components.sampling_only]
    trained = 0
    if text_encoders.trains_text(recipe):
        names += sorted(loading.text_components(family, folder))
        planned = planning.plan_adapters(recipe, family, folder, lambda text: None)
        for name, spec in planned.specs.items():
            if name in family.text.trainable_encoders:
                adapters.inject_adapter(planned.networks[name], spec=spec)
                trained += adapters.count_trainable(planned.networks[name]).num_parameters
    elif recipe.memory_config.keep_text_encoders:
        names += sorted(loading.text_components(family, folder))
    return networks.component_bytes(folder, names, itemsize), trained


def buckets_of(items: Sequence[DatasetItem]) -> dict[tuple[int, int], int]:
    """Return the number of images of each bucket, the largest number first."""
    counts: dict[tuple[int, int], int] = {}
    for item in items:
        counts[item.bucket] = counts.get(item.bucket, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))
