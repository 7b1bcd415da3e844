"""From a recipe to everything the loop needs, in stages, so that only one part of a model is in memory at a
time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit import adapter, bases, dataset, keyed, manifest, objective, prompts, quantize, sample, storage
from lorakit.errors import ConfigError
from lorakit.export.consumers import check_consumer
from lorakit.families import find
from lorakit.families.base import Family
from lorakit.families.folder import components, pipeline_name
from lorakit.recipe import Memory, Recipe, recipe_hash

Say = Callable[[str], None]


@dataclass
class Session:
    """A run, ready to train: `denoiser` carries the adapter, `encoded` the prompts to sample (or None)."""

    recipe: Recipe
    base: Path
    family: Family
    pipe: Any
    denoiser: Any
    train: dataset.TrainingSet
    held_out: dataset.TrainingSet
    objective: objective.Objective
    encoded: sample.Encoded | None
    sampling: sample.Settings
    inputs: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """What an adapter file says about itself; no path, no name of a person or machine."""
        settings = self.recipe.adapter
        return {
            "type": settings.type,
            "rank": settings.rank,
            "alpha": float(settings.alpha),
            "family": self.family.name,
            "pipeline": pipeline_name(self.base),
            "base_hash": self.inputs["base"],
            "resolution": self.recipe.resolution,
            **({"frames": self.recipe.frames} if self.family.clips else {}),
            "trigger": self.recipe.trigger,
            "recipe_hash": recipe_hash(self.recipe),
        }


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


def plan(recipe: Recipe, say: Say) -> Plan:
    """Check base, data and prompts against each other; every problem is found here, before any work."""
    base = bases.resolve(recipe.base)
    family = find(base)
    for consumer in recipe.export:
        check_consumer(family.name, consumer)
    if recipe.export and len(family.trained_parts(base)) > 1:
        raise ConfigError(
            f"{family.title}: an adapter of two experts is not exported yet",
            where="export",
            remedy="use `export: []`; adapter.safetensors holds both, each under the name of its component",
        )
    wanted = prompts.load(recipe.samples.prompts) if recipe.samples.prompts else []
    records = dataset.read(recipe.dataset)
    dataset.check_files(recipe.dataset, records)
    pipe = family.load(base, dtype=torch.float32, only={"scheduler"})
    _objective(recipe, family, pipe)  # refuses what contradicts the base
    step = family.size_step(pipe)
    _check_resolution(recipe.resolution, step)
    items, own = dataset.plan(records, recipe.resolution, step, recipe.train.batch_size)
    if not own:
        say(f"buckets chosen for resolution {recipe.resolution}: the manifest has none that suit")
    items = dataset.with_frames(items, family, pipe, _frames(recipe, family))
    for size in {item.size for item in items}:
        family.latent_shape(pipe, *size)  # refuses what the base has no positions for
    inputs = {"data": manifest.fingerprint(records), "base": bases.content_hash(base)}
    if recipe.init_from:
        inputs["init_from"] = storage.sha256_file(_check_first(recipe, recipe.init_from, family))
        if adapter.read_metadata(adapter.file_of(recipe.init_from))["base_hash"] != inputs["base"]:
            say("the adapter to start from was trained on another base of this family")
    return Plan(base, family, items, wanted, inputs, recipe.resolution)


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


def build(
    recipe: Recipe, plan: Plan, device: torch.device, *, main: bool, wait: Callable[[], None]
) -> Session:
    """Fill the caches (in the `main` process; the others `wait`), then load the denoiser and inject the
    adapter."""
    family = plan.family
    text_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    text = dataset.TextCache(family, plan.base, text_dtype)
    latents = dataset.LatentCache(recipe.dataset, plan.base, settings=family.vae_settings)
    if main:
        _fill_text(plan, text, device, text_dtype)
        _fill_latents(plan, latents, device)
    wait()
    held, train = split(plan.items, recipe)
    pipe = _load_denoiser(recipe, plan, device)
    denoiser = family.denoiser(pipe)
    targets: str | list[str] = family.targets
    if isinstance(recipe.adapter.targets, list):
        targets = recipe.adapter.targets
    adapter.inject(
        denoiser,
        rank=recipe.adapter.rank,
        alpha=recipe.adapter.alpha,
        targets=targets,
        seed=recipe.train.seed,
    )
    if recipe.init_from:
        file = adapter.file_of(recipe.init_from)
        adapter.load_state(denoiser, family.component, storage.read_safetensors(file), str(file))
    if _recomputes(recipe, device):
        family.recompute(denoiser)
    return Session(
        recipe=recipe,
        base=plan.base,
        family=family,
        pipe=pipe,
        denoiser=denoiser,
        train=dataset.TrainingSet(train, latents, text),
        held_out=dataset.TrainingSet(held, latents, text),
        objective=_objective(recipe, family, pipe),
        encoded=_encoded(plan, text) if plan.prompts else None,
        sampling=sample.Settings(
            plan.resolution,
            plan.resolution,
            recipe.samples.steps,
            recipe.samples.guidance,
            frames=recipe.frames,
        ),
        inputs=plan.inputs,
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


def _fill_text(plan: Plan, text: dataset.TextCache, device: torch.device, dtype: torch.dtype) -> None:
    wanted = [(caption.text, item.size) for item in plan.items for caption in item.record.captions]
    square = (plan.resolution, plan.resolution)
    wanted += [(t, square) for prompt in plan.prompts for t in (prompt.prompt, prompt.negative or "")]
    if missing := text.missing(wanted):
        parts = {part for part in components(plan.base) if part.startswith(plan.family.text_parts)}
        text.fill(missing, plan.family.load(plan.base, dtype=dtype, device=device, only=parts))
    _collect()


def _fill_latents(plan: Plan, latents: dataset.LatentCache, device: torch.device) -> None:
    if missing := latents.missing(plan.items):
        latents.fill(missing, plan.family.load(plan.base, dtype=torch.float32, device=device, only={"vae"}))
    _collect()


def _load_denoiser(recipe: Recipe, plan: Plan, device: torch.device) -> Any:
    parts = {*plan.family.trained_parts(plan.base), "scheduler"}
    parts |= {"vae", *plan.family.drawn_with} if plan.prompts else set()
    on_gpu = device.type == "cuda" and recipe.train.precision == "bf16"
    dtype = (
        torch.bfloat16 if on_gpu else torch.float32
    )  # on a CPU, autocast over fp32 weights is the fast way
    kind = recipe.memory.quantize if isinstance(recipe.memory, Memory) else None
    if not kind:
        return plan.family.load(plan.base, dtype=dtype, device=device, only=parts)
    pipe = plan.family.load(plan.base, dtype=dtype, only=parts)  # the device never holds the whole base
    compute = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    quantize.swap(plan.family.denoiser(pipe), kind, device, compute)
    return pipe.to(device)


def _objective(recipe: Recipe, family: Family, pipe: Any) -> objective.Objective:
    alphas = getattr(pipe.scheduler, "alphas_cumprod", None)
    return objective.from_scheduler(family.objective, pipe.scheduler.config, recipe.objective, alphas)


def _encoded(plan: Plan, text: dataset.TextCache) -> sample.Encoded:
    size = (plan.resolution, plan.resolution)
    positive = [text.get(prompt.prompt, size) for prompt in plan.prompts]
    negative = [text.get(prompt.negative or "", size) for prompt in plan.prompts]
    return sample.Encoded(plan.prompts, positive, negative)


def _recomputes(recipe: Recipe, device: torch.device) -> bool:
    memory = recipe.memory
    return bool(memory.checkpoint) if isinstance(memory, Memory) else device.type == "cuda"


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
