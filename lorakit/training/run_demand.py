"""A run counted before its weights are loaded: its network at its largest images, and what stays beside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lorakit import adapters
from lorakit.adapters import planning, text_encoders
from lorakit.config.recipe import Recipe
from lorakit.data.items import DatasetItem
from lorakit.models import device as devices
from lorakit.models import loading
from lorakit.models.families.family import Family
from lorakit.models.families.video import VideoFamily
from lorakit.planner import networks
from lorakit.planner.demand import RunDemand
from lorakit.planner.network_count import CountError, NetworkCount, count_network
from lorakit.planner.short_network import Shapes
from lorakit.planner.text_shapes import text_shapes
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_plan import DataPlan

MAX_CAPTIONS = 200
"""Captions of a dataset whose longest one is encoded by shape."""


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


@dataclass(frozen=True)
class RunNetwork:
    """The denoiser of a run with its adapter, without weights, and the shapes of its largest image."""

    family: Family
    build: Callable[[], nn.Module]
    """Returns the denoiser on the meta device."""
    inject: Callable[[nn.Module], object]
    """Adds the adapter."""
    latents: tuple[int, ...]
    shapes: Shapes
    """Of the conditioning."""
    dtype: torch.dtype
    image: tuple[int, int]
    on_cpu: bool
    """True for a run on a CPU."""

    def count(self) -> NetworkCount:
        """Count a pass; a network whose code needs real numbers is estimated from its layers."""
        try:
            return count_network(
                self.family,
                self.build,
                self.inject,
                self.latents,
                self.shapes,
                dtype=self.dtype,
                image=self.image,
                on_cpu=self.on_cpu,
            )
        except CountError:
            network, patch_size = self.build(), self.family.latents.patch_size
            counted = networks.assumed_count(
                network, self.latents, patch_size, self.shapes, trained=0, itemsize=self.dtype.itemsize
            )
            self.inject(network)
            trained = adapters.count_trainable(network).num_parameters
            return dataclasses.replace(counted, trained=trained, image=self.image)


def target_of(plan: DataPlan) -> CountTarget:
    """Return the image of a dataset that needs most memory."""
    item = _largest_item(plan)
    areas = [one.bucket[0] * one.bucket[1] for one in plan.items]
    captions = [one.record.caption for one in plan.items[:MAX_CAPTIONS]]
    mean_area = sum(areas) / len(areas) / max(areas)
    return CountTarget(plan.family, plan.base_folder, item.bucket, largest_latents(plan), captions, mean_area)


def _largest_item(plan: DataPlan) -> DatasetItem:
    return max(plan.items, key=lambda item: item.bucket[0] * item.bucket[1] * max(1, len(item.frame_indices)))


def largest_latents(plan: DataPlan) -> tuple[int, ...]:
    """Return the shape of the latents of the largest image."""
    pipe = plan.family.load(plan.base_folder, dtype=torch.float32, only={"scheduler"})
    item = _largest_item(plan)
    if isinstance(plan.family, VideoFamily) and len(item.frame_indices) > 1:
        return plan.family.latent_shape(pipe, *item.bucket, len(item.frame_indices))
    return plan.family.latent_shape(pipe, *item.bucket)


def cached_shapes(caches: RunCaches, plan: DataPlan) -> Shapes | None:
    """Return the shapes of the largest image's conditioning, with the longest caption that is encoded.

    None if no caption is in the caches, or if the image's own conditioning is not.
    """
    item = _largest_item(plan)
    if caches.images.conditioning.missing([item]):
        return None
    longest: Mapping[str, torch.Tensor] = {}
    for one in plan.items:
        text = caches.text.find(caches.images.text_request(one.record.caption, one)) or {}
        longest = max(longest, text, key=lambda tensors: sum(value.numel() for value in tensors.values()))
    if not longest:
        return None
    tensors = {**longest, **caches.images.conditioning[item]}
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def run_network(
    recipe: Recipe, target: CountTarget, device_type: str, shapes: Shapes | None = None
) -> RunNetwork:
    """Return the network of a run; `shapes` are those of its conditioning, where they are known."""
    family, folder = target.family, target.base_folder
    if shapes is None:
        shapes = text_shapes(family, folder, target.captions, target.image)
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

    dtype = devices.compute_dtype(recipe.train.precision)
    return RunNetwork(
        family, build, inject, target.latents, shapes, dtype, target.image, on_cpu=device_type == "cpu"
    )


def count_target(
    recipe: Recipe, target: CountTarget, device_type: str, shapes: Shapes | None = None
) -> tuple[RunDemand, RunNetwork]:
    """Count a run; `shapes` are those of its conditioning, where they are in the caches."""
    network = run_network(recipe, target, device_type, shapes)
    others, trained = _other_networks(recipe, target.family, target.base_folder, network.dtype.itemsize)
    return demand_of(recipe, network.count(), others, trained, target.mean_area), network


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


def without_initial_weights(spec: adapters.AdapterSpec) -> adapters.AdapterSpec:
    """Return an adapter of the same shapes that does not read the base model's weights."""
    return dataclasses.replace(spec, init="kaiming") if spec.starts_from_weight else spec


def _other_networks(
    recipe: Recipe, family: Family, folder: Path, itemsize: int
) -> tuple[dict[str, int], int]:
    """Return the bytes of the networks beside the denoiser that stay loaded, and what is trained in them."""
    names: list[str] = []
    if recipe.samples.prompts is not None:
        names += sorted(loading.sampling_components(family, folder))
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


def activation_bound(recipe: Recipe, plan: DataPlan, itemsize: int) -> int:
    """Return a bound of the activations of a forward pass, many times too large; it takes milliseconds."""
    names = plan.family.denoiser_components(plan.base_folder)
    positions = math.prod(largest_latents(plan)[1:]) + 512
    one = networks.activation_bound(plan.base_folder, names, positions, itemsize)
    return one * recipe.train.batch_size


def buckets_of(items: Sequence[DatasetItem]) -> dict[tuple[int, int], int]:
    """Return the number of images of each bucket, the largest number first."""
    counts: dict[tuple[int, int], int] = {}
    for item in items:
        counts[item.bucket] = counts.get(item.bucket, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))
