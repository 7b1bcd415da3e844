"""The error for a step that does not fit the memory, with the changes of the recipe that would shrink it.

Each remedy is an override as it is typed after `lorakit train`. It is listed only if it is not in force yet,
if the recipe accepts it, and if the planner predicts less memory with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from lorakit.adapters.injection import all_trainable_parameters
from lorakit.config.recipe import Recipe, change_recipe
from lorakit.core.errors import ConfigError, MemoryLimitError
from lorakit.models import device as devices
from lorakit.models import memory
from lorakit.models.families.video import VideoFamily
from lorakit.models.memory import MemorySettings, format_bytes, placement
from lorakit.planner.demand import RunDemand
from lorakit.planner.footprint import Footprint, estimate_footprint, modulation_bytes
from lorakit.planner.network_count import NetworkCount, with_activations
from lorakit.training import run_demand
from lorakit.training.run_demand import CountTarget
from lorakit.training.setup import Session

_RANK_AXES = {
    "lora_A": 0, "lora_B": 1,
    "hada_w1_a": 1, "hada_w1_b": 0, "hada_w2_a": 1, "hada_w2_b": 0,
    "lokr_w1_a": 1, "lokr_w1_b": 0, "lokr_w2_a": 1, "lokr_w2_b": 0,
}  # fmt: skip
_FACTOR_NAME = re.compile(r"\.((?:lora_[AB]|hada_w\d_[ab]|lokr_w\d_[ab]))(?:\.weight)?$")


@dataclass(frozen=True)
class Situation:
    """A run with memory settings, one image at once."""

    demand: RunDemand
    settings: MemorySettings

    @property
    def footprint(self) -> Footprint:
        """The predicted memory."""
        return estimate_footprint(self.demand, self.settings)


@dataclass(frozen=True)
class Remedy:
    """Overrides of a recipe, such as `resolution=384`, and the memory that is predicted with them."""

    overrides: tuple[str, ...]
    effect: str
    footprint: Footprint

    def __str__(self) -> str:
        return f"{' '.join(self.overrides)} ({self.effect})"


def memory_limit_error(session: Session, step: int, reason: str) -> MemoryLimitError:
    """Build the error for a step of which not even one image fits."""
    situation = session_situation(session)
    footprint = situation.footprint
    moving = footprint.activations + footprint.recomputed + footprint.temporary
    parts = {
        "base": footprint.weights + footprint.ring,
        "adapter with optimizer": footprint.adapter + footprint.gradients + footprint.optimizer,
        "activations of one image": moving,
        "VAE and text encoders": footprint.other_networks,
    }
    sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    remedies = find_remedies(session, situation)
    if remedies:
        remedy = "in a new run, " + "; or ".join(map(str, remedies))
    else:
        remedy = (
            "no setting of this recipe needs less memory: close other programs that use this memory,"
            " or use a smaller base model or a device with more memory"
        )
    return MemoryLimitError(
        f"out of memory with one image at a time; estimated: {sizes}\n  {reason}",
        where=f"step {step}",
        remedy=remedy,
    )


def session_situation(session: Session, recipe: Recipe | None = None) -> Situation:
    """Return what a session needs, and the settings in force, for one image of its largest bucket.

    `recipe` replaces the session's own.
    """
    recipe = recipe or session.recipe
    data = session.train_set
    index = max(range(len(data.items)), key=lambda i: _pixels(data.batch_shapes[i]))
    batch = data.batch([data.sample_as_written(0, index)], torch.device("cpu"))
    shapes = {name: (tuple(value.shape[1:]), value.dtype) for name, value in batch.cond.items()}
    latents = tuple(batch.latents.shape[1:])
    target = CountTarget(session.family, session.base_folder, data.items[index].bucket, latents, (), 1.0)
    demand, _ = run_demand.count_target(recipe, target, session.device.type, shapes)
    others = {f"kept text encoder {i}": memory.total_bytes(encoder.parameters())
              for i, encoder in enumerate(data.kept_text_encoders)}  # fmt: skip
    demand = replace(demand, others={**demand.others, **others})
    placed, settings = placement.placement_of(session.denoiser), session.memory_settings
    if placed is not None:
        settings = replace(settings, gradient_checkpointing=placed.checkpointing_share)
    return Situation(demand, settings)


def _pixels(shape: tuple[int, ...]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result


def find_remedies(session: Session, situation: Situation) -> list[Remedy]:
    """Return the changes of the recipe that need less memory, those that save most first."""
    candidates = (
        *_settings(session, situation),
        *_precision(session, situation),
        *_resolution(session, situation),
        *_frames(session, situation),
        *_optimizer(session, situation),
        *_rank(session, situation),
        *_networks(session, situation),
    )
    before = situation.footprint
    remedies = [
        Remedy(overrides, _effect(before, after), after)
        for overrides, changed in candidates
        if (after := changed.footprint).total < before.total and _suits(session.recipe, overrides)
    ]
    return sorted(remedies, key=lambda remedy: remedy.footprint.total)


_Candidate = tuple[tuple[str, ...], Situation]


def _effect(before: Footprint, after: Footprint) -> str:
    return f"{format_bytes(after.total)} instead of {format_bytes(before.total)}"


def _suits(recipe: Recipe, overrides: tuple[str, ...]) -> bool:
    """Return True if the recipe accepts overrides that change it."""
    try:
        return change_recipe(recipe, overrides) != recipe
    except ConfigError:
        return False


def _settings(session: Session, situation: Situation) -> Iterator[_Candidate]:
    """The memory settings that are not in force yet."""
    settings, has_own_memory = situation.settings, session.device.type in ("cuda", "xpu")
    changes: list[tuple[str, MemorySettings]] = []
    if settings.quantize != "nf4":
        changes.append(("memory.quantize=nf4", replace(settings, quantize="nf4")))
    if settings.gradient_checkpointing < 1:
        changes.append(("memory.gradient_checkpointing=1", replace(settings, gradient_checkpointing=1.0)))
    if has_own_memory:
        changes.append(("memory.stream=1", replace(settings, stream=1.0)))
        changes.append(("memory.offload_activations=true", replace(settings, offload_activations=True)))
        if modulation_bytes(situation.demand.network, settings):
            changes.append(("memory.offload_modulation=true", replace(settings, offload_modulation=True)))
    yield from (((override,), replace(situation, settings=changed)) for override, changed in changes)


def _precision(session: Session, situation: Situation) -> Iterator[_Candidate]:
    """Half precision of the frozen base model, where the device keeps its weights in it."""
    before = devices.compute_dtype(session.recipe.train.precision)
    half = devices.supported_precisions(session.device)[0]
    after = devices.compute_dtype(half)
    override = f"train.precision={half}"
    if after.itemsize < before.itemsize:  # counted again: some layers compute in float32 all the same
        counted = session_situation(session, change_recipe(session.recipe, [override]))
        yield (override,), _with_network(situation, counted.demand.network)


def _resolution(session: Session, situation: Situation) -> Iterator[_Candidate]:
    resolution, multiple = session.recipe.resolution, session.family.size_multiple(session.pipe)
    if smaller := int(resolution * 0.75) // multiple * multiple:
        network = with_activations(situation.demand.network, (smaller / resolution) ** 2)
        yield (f"resolution={smaller}",), _with_network(situation, network)


def _frames(session: Session, situation: Situation) -> Iterator[_Candidate]:
    family = session.family
    frames = max((len(item.frame_indices) for item in session.train_set.items), default=1)
    if isinstance(family, VideoFamily) and frames > 1:
        multiple = family.frame_multiple(session.pipe)
        before = (frames - 1) // multiple
        after = before // 2
        if after < before:
            network = with_activations(situation.demand.network, (after + 1) / (before + 1))
            yield (f"frames={after * multiple + 1}",), _with_network(situation, network)


def _with_network(situation: Situation, network: NetworkCount) -> Situation:
    return replace(situation, demand=replace(situation.demand, network=network))


def _optimizer(session: Session, situation: Situation) -> Iterator[_Candidate]:
    demand = replace(situation.demand, optimizer="adamw8bit")
    yield ("optimizer.name=adamw8bit",), replace(situation, demand=demand)


def _rank(session: Session, situation: Situation) -> Iterator[_Candidate]:
    """Half the rank, with the same alpha / rank; the rank of `init_from` cannot change."""
    recipe = session.recipe
    rank, smaller = recipe.adapter.rank, recipe.adapter.rank // 2
    if not smaller or recipe.init_from:
        return
    count = 0.0
    for name, parameter in all_trainable_parameters(session.networks):
        part = _FACTOR_NAME.search(name)
        if part and parameter.shape[_RANK_AXES[part[1]]] == rank:
            count += parameter.numel() * (1 - smaller / rank)
        elif name.endswith("oft_R.weight") and rank % 2 == 0:  # half a block still divides the inputs
            count += parameter.numel() * (1 - (smaller - 1) / (rank - 1))
    if count and recipe.adapter.type == "oft" and smaller < 2:
        return  # blocks of one number rotate nothing
    overrides = [f"adapter.rank={smaller}"]
    if recipe.adapter.type not in ("oft", "none"):
        scale = smaller / rank
        alpha = recipe.adapter.alpha * (scale**0.5 if recipe.adapter.type == "rslora" else scale)
        overrides.append(f"adapter.alpha={alpha:g}")
    network = situation.demand.network
    yield tuple(overrides), _with_network(situation, replace(network, trained=network.trained - int(count)))


def _networks(session: Session, situation: Situation) -> Iterator[_Candidate]:
    """No samples during the training, for which the VAE stays loaded; captions encoded beforehand."""
    demand, recipe = situation.demand, session.recipe
    if recipe.samples.prompts is not None:
        parts = session.family.components
        kept = {"vae", *parts.sampling_only, *parts.image_encoders}
        others = {name: size for name, size in demand.others.items() if name not in kept}
        yield ("samples.prompts=null",), replace(situation, demand=replace(demand, others=others))
    if session.train_set.kept_text_encoders:
        others = {name: size for name, size in demand.others.items() if "text_encoder" not in name}
        others = {name: size for name, size in others.items() if not name.startswith("kept text encoder")}
        yield (
            ("memory.keep_text_encoders=false",),
            replace(situation, demand=replace(demand, others=others)),
        )
