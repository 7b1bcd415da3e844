"""From a plan to everything the loop needs, in stages, so that only one part of a model is in memory at a
time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.adapters.formats import consumers
from lorakit.adapters.formats.module_names import with_text_model_prefix
from lorakit.adapters.text_encoders import UncachedTextEncoder
from lorakit.config.recipe import MemoryConfig, Recipe, recipe_hash
from lorakit.core import storage
from lorakit.data import dataset
from lorakit.models import loading
from lorakit.models.families.family import Family
from lorakit.models.families.pipeline_folder import pipeline_name
from lorakit.sampling import generate
from lorakit.training import objective
from lorakit.training.run_caches import TrainingCaches
from lorakit.training.run_plan import LogFn, TrainingPlan, build_objective, split_held_out


@dataclass
class Session:
    """A run, ready to train: `networks` carry the adapters, `encoded` the prompts to sample (or None)."""

    recipe: Recipe
    base: Path
    family: Family
    pipe: Any
    denoiser: Any
    networks: dict[str, torch.nn.Module]
    shapes: dict[str, adapters.AdapterSpec]
    train: dataset.TrainingSet
    held_out: dataset.TrainingSet
    class_images: dataset.TrainingSet | None
    objective: objective.Objective
    encoded: generate.EncodedPrompts | None
    sampling: generate.SamplingSettings
    inputs: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """What an adapter file says about itself; no path, no name of a person or machine."""
        return {
            **adapters.adapter_metadata(self.shapes),
            **text_encoders.textual_inversion_metadata(self.recipe),
            "family": self.family.name,
            "pipeline": pipeline_name(self.base),
            "base_hash": self.inputs["base"],
            "resolution": self.recipe.resolution,
            **({"frames": self.recipe.frames} if self.family.clips else {}),
            "trigger": self.recipe.trigger,
            "recipe_hash": recipe_hash(self.recipe),
        }

    def encoded_now(self) -> generate.EncodedPrompts | None:
        """The prompts to sample, by the text encoders as they are now."""
        if self.encoded is None or not text_encoders.trains_text(self.recipe):
            return self.encoded
        size = (self.sampling.width, self.sampling.height)
        return generate.encode_prompts(self.family, self.pipe, self.encoded.prompts, size)


def build_session(
    recipe: Recipe,
    plan: TrainingPlan,
    device: torch.device,
    *,
    main: bool,
    wait: Callable[[], None],
    say: LogFn = lambda text: None,
) -> Session:
    """Fill the caches (in the `main` process; the others `wait`), then load what is trained and inject the
    adapters."""
    family, stores = plan.family, TrainingCaches(recipe, plan, device, say)
    if main:
        stores.fill()
    wait()
    pipe = _load_trained(recipe, plan, device)
    denoiser = family.denoiser(pipe)
    shapes = text_encoders.inject_adapters(recipe, family, pipe)
    _check_exports(recipe, family, shapes)
    networks = {
        name: part for name, part in text_encoders.adaptable_networks(family, pipe).items() if name in shapes
    }
    text = UncachedTextEncoder(family, pipe) if text_encoders.trains_text(recipe) else stores.text
    if recipe.init_from:
        file = adapters.resolve_adapter_file(recipe.init_from)
        adapters.load_adapter_state_dict(networks, storage.read_safetensors(file), str(file))
    if _uses_gradient_checkpointing(recipe, device):
        family.recompute(denoiser)
    held, train = split_held_out(plan.items, recipe)
    samples = recipe.samples
    return Session(
        recipe=recipe,
        base=plan.base,
        family=family,
        pipe=pipe,
        denoiser=denoiser,
        networks=networks,
        shapes=shapes,
        train=stores.images(train, text),
        held_out=stores.images(held, text),
        class_images=stores.class_images(text),
        objective=build_objective(recipe, family, pipe),
        encoded=_encoded(plan, stores, text) if plan.prompts else None,
        sampling=generate.SamplingSettings(
            plan.resolution, plan.resolution, samples.steps, samples.guidance, frames=recipe.frames
        ),
        inputs=plan.inputs,
    )


def _check_exports(recipe: Recipe, family: Family, shapes: Mapping[str, adapters.AdapterSpec]) -> None:
    """Refuse what could not be exported as asked, before it is trained."""
    modules = [
        f"{family.component if part in family.experts else part}.{with_text_model_prefix(name)}"
        for part, shape in shapes.items()
        for name in shape.modules
    ]
    for consumer in recipe.export:
        if consumers.unsupported_modules(family.name, consumer, modules):
            raise consumers.unsupported_error(family.name, consumer, modules, "export")


def _load_trained(recipe: Recipe, plan: TrainingPlan, device: torch.device) -> Any:
    parts = {*plan.family.trained_parts(plan.base), "scheduler"}
    parts |= {"vae", *plan.family.drawn_with} if plan.prompts else set()
    if text_encoders.trains_text(recipe):
        parts |= loading.text_components(plan.family, plan.base)
    on_gpu = device.type == "cuda" and recipe.train.precision == "bf16"
    dtype = (
        torch.bfloat16 if on_gpu else torch.float32
    )  # on a CPU, autocast over fp32 weights is the fast way
    return loading.load_components(
        plan.family,
        plan.base,
        parts,
        dtype=dtype,
        device=device,
        kind=recipe.quantized,
        compute=torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32,
    )


def _encoded(plan: TrainingPlan, stores: TrainingCaches, text: dataset.TextSource) -> generate.EncodedPrompts:
    if isinstance(text, UncachedTextEncoder):  # they will be others by the time they are drawn
        return generate.EncodedPrompts(plan.prompts, [], [])
    return stores.encoded()


def _uses_gradient_checkpointing(recipe: Recipe, device: torch.device) -> bool:
    memory = recipe.memory
    return bool(memory.checkpoint) if isinstance(memory, MemoryConfig) else device.type == "cuda"
