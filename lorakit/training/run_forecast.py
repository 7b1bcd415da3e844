"""A run predicted before it starts, for `lorakit plan`: memory, time, cost, cache, and the settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.config.recipe import AdapterConfig, Recipe
from lorakit.core.errors import ConfigError, LorakitError, first_line
from lorakit.data.items import load_concepts
from lorakit.models import base_model, families, hub
from lorakit.models import device as devices
from lorakit.models.families import detect_family
from lorakit.models.families.published_models import PublishedModel, published_model
from lorakit.models.memory import format_bytes
from lorakit.models.precision import PrecisionChoice
from lorakit.planner import published
from lorakit.planner.choice import Choice, Option, choose
from lorakit.planner.demand import RunDemand
from lorakit.planner.machine import Machine
from lorakit.planner.network_count import NetworkCount, in_precision
from lorakit.planner.short_network import Shapes
from lorakit.planner.table import describe_settings
from lorakit.training import memory_plan, run_demand, run_plan
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_demand import CountTarget, RunNetwork
from lorakit.training.run_precision import change_precision, choose_precision
from lorakit.training.step_measurement import with_measured_times

CACHED_BYTES = 2  # of a number in the caches


@dataclass(frozen=True)
class Forecast:
    """The plan of a run."""

    base: str
    machine: Machine
    demand: RunDemand
    choice: Choice
    precision: PrecisionChoice
    buckets: dict[tuple[int, int], int]
    """Number of images of each bucket; empty if there is no dataset yet."""
    cache_bytes: int
    """Latents and text embeddings of all images."""
    price: float | None
    """Of an hour."""
    notes: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Duration of the steps, without caching, samples and validation."""
        return self.choice.best.step.total * self.demand.steps / 3600

    @property
    def timing(self) -> str:
        """The origin of the step's time, in words."""
        if self.demand.times is not None:
            return "measured on this machine with random weights"
        return f"computed from {'measured' if self.machine.platform == 'cpu' else 'published'} speeds"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        best = self.choice.best
        return {
            "base": self.base,
            "device": {"name": self.machine.name, "usable_bytes": self.machine.usable_bytes},
            "fits": best.fits,
            "precision": self.precision.to_json(),
            "memory": best.settings.to_json(),
            "images_at_once": best.micro_batch,
            "peak_bytes": best.footprint.to_json(),
            "main_memory_bytes": best.host_bytes,
            "step_seconds": best.step.to_json(),
            "timing": self.timing,
            "steps": self.demand.steps,
            "hours": float(f"{self.hours:.3g}"),
            "cost": None if self.price is None else float(f"{self.hours * self.price:.3g}"),
            "cache_bytes": self.cache_bytes,
            "buckets": [
                {"width": width, "height": height, "images": count}
                for (width, height), count in self.buckets.items()
            ],
            "reasons": list(self.choice.reasons),
            "alternatives": [option.to_json() for option in self.choice.alternatives],
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Return the plan as text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        best, step = self.choice.best, self.choice.best.step
        usable, waiting = format_bytes(self.machine.usable_bytes), format_bytes(best.host_bytes)
        yield f"plan for {self.machine.name}, of whose memory a run may fill {usable}"
        yield ""
        yield f"peak memory    {format_bytes(best.footprint.total)}"
        for name, size in best.footprint.to_json().items():
            if size and name != "total":
                yield f"  {name.replace('_', ' '):<15}{format_bytes(size)}"
        if best.host_bytes:
            yield f"main memory    {waiting} of weights and activations"
        yield f"a step         {step.total:.3g} s, {self.timing}"
        length = f"{self.demand.steps} steps, {_duration(self.hours)}"
        yield f"the run        {length}, without caching and samples"
        if self.price is not None:
            yield f"cost           {self.hours * self.price:.2f} at {self.price:g} an hour"
        if self.cache_bytes:
            yield f"cache          {format_bytes(self.cache_bytes)} on the disk"
        for (width, height), count in self.buckets.items():
            yield f"bucket         {width} x {height}: {count} images"
        yield ""
        yield f"precision      {self.precision.value}: {self.precision.reason}"
        yield f"settings       {describe_settings(best.settings)}"
        yield from (f"  {reason}" for reason in self.choice.reasons)
        for option in self.choice.alternatives:
            yield f"or             {_describe(option)}"
        yield from (f"note: {note}" for note in self.notes)


def _describe(option: Option) -> str:
    peak = format_bytes(option.footprint.total)
    return f"{describe_settings(option.settings)}: peak {peak}, {option.step.total:.3g} s a step"


def _duration(hours: float) -> str:
    return f"{hours * 60:.0f} minutes" if hours < 1.5 else f"{hours:.1f} hours"


def forecast_run(recipe: Recipe, machine: Machine, price: float | None = None) -> Forecast:
    """Predict a run on a machine; no weights are loaded, and nothing is downloaded.

    Raises ConfigError for a base model that is neither on this machine nor a published one that is known.
    """
    precision = choose_precision(recipe, machine.platform, machine.precision)
    recipe, folder = change_precision(recipe, precision.value), _local_base(recipe.base)
    if folder is None:
        return _forecast_published(recipe, machine, precision, price)
    notes = list[str]()
    family = detect_family(folder, ())
    pipe = family.load(folder, dtype=torch.float32, only={"scheduler"})
    shapes = None
    try:
        concepts = load_concepts(recipe.concepts)
        plan = run_plan.plan_data(recipe, folder, family, pipe, concepts, lambda text: None)
    except LorakitError as error:
        notes.append(f"planned for square images of {recipe.resolution} pixels: {first_line(error)}")
        plan = None
    if plan is None:
        size = (recipe.resolution, recipe.resolution)
        target = CountTarget(family, folder, size, family.latent_shape(pipe, *size), ("a photo",), 1.0)
    else:
        target = run_demand.target_of(plan)
        caches = RunCaches(recipe, plan, devices.default_device(), lambda text: None)
        shapes = run_demand.cached_shapes(caches, plan)
    demand, network = run_demand.count_target(recipe, target, machine.platform, shapes)
    images = len(plan.items) if plan else 0
    return _forecast(
        recipe,
        network,
        demand,
        machine,
        precision,
        buckets=run_demand.buckets_of(plan.items) if plan else {},
        cache_bytes=images * _cached_bytes(target.latents, network.shapes),
        price=price,
        notes=notes,
    )


def _forecast(
    recipe: Recipe,
    network: RunNetwork,
    demand: RunDemand,
    machine: Machine,
    precision: PrecisionChoice,
    *,
    price: float | None,
    notes: Sequence[str],
    buckets: dict[tuple[int, int], int] | None = None,
    cache_bytes: int = 0,
) -> Forecast:
    """Measure the step where it can be measured, and choose the settings."""
    demand, machine = with_measured_times(recipe, network, demand, machine)
    fixed, usable = memory_plan.fixed_settings(recipe), memory_plan.usable_quantizations(recipe)
    choice = choose(demand, machine, fixed, quantizations=usable)
    return Forecast(
        recipe.base, machine, demand, choice, precision, buckets or {}, cache_bytes, price, tuple(notes)
    )


def _local_base(base: str) -> Path | None:
    """Return the folder of a base model that is on this machine; None for one that is not downloaded."""
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    return hub.cached_model(base) if is_hub_id else base_model.resolve_base(base)


def _cached_bytes(latents: tuple[int, ...], shapes: Shapes) -> int:
    return CACHED_BYTES * (math.prod(latents) + sum(math.prod(shape) for shape, _ in shapes.values()))


def _forecast_published(
    recipe: Recipe, machine: Machine, precision: PrecisionChoice, price: float | None
) -> Forecast:
    """Plan a base model that is not downloaded from the settings of its network, which are known."""
    download = f"hf download {recipe.base.partition('@')[0]}"
    model = published_model(recipe.base)
    if model is None:
        raise ConfigError(
            "this base model is not on this machine, and its network is not known",
            where=f"base: {recipe.base}",
            remedy=f"download it: {download}",
        )
    size = recipe.resolution
    network = _published_network(recipe, model, on_cpu=machine.platform == "cpu")
    note = f"{model.title} is not downloaded: planned for square images of {size} pixels from the settings of"
    return _forecast(
        recipe,
        network,
        run_demand.demand_of(recipe, _published_count(recipe, model, network), {}, 0, 1.0),
        machine,
        precision,
        price=price,
        notes=(f"{note} its published network; download it: {download}",),
    )


def _published_network(recipe: Recipe, model: PublishedModel, *, on_cpu: bool) -> RunNetwork:
    family, size = families.get_family(model.family), recipe.resolution

    def inject(network: torch.nn.Module) -> None:
        component = family.components.denoiser
        specs = text_encoders.adapter_specs(recipe, family, {component: network}, lambda text: None)
        adapters.inject_adapter(network, spec=run_demand.without_initial_weights(specs[component]))

    dtype = devices.compute_dtype(recipe.train.precision)
    latents = model.latents_at(size, size)
    return RunNetwork(family, model.build, inject, latents, model.shapes(), dtype, (size, size), on_cpu)


def _published_count(recipe: Recipe, model: PublishedModel, network: RunNetwork) -> NetworkCount:
    """Return the stored count of a model, if the recipe has its adapter and image size; else count it."""
    adapter = recipe.adapter
    plain = AdapterConfig(rank=published.RANK, alpha=adapter.alpha)
    if adapter == plain and recipe.resolution == model.resolution and not network.on_cpu:
        return in_precision(published.stored_counts()[model.key], network.dtype.itemsize)
    return network.count()
