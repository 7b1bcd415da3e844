"""The error for a step that does not fit the memory, with the changes of the recipe that would shrink it.

Each remedy is an override as it is typed after `lorakit train`. It is listed only if it is not in force yet,
if the recipe accepts it, and if the estimate with it is smaller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from lorakit.adapters.injection import all_trainable_parameters
from lorakit.config.recipe import Recipe, change_recipe
from lorakit.core.errors import ConfigError, MemoryLimitError
from lorakit.models import device as devices
from lorakit.models import memory
from lorakit.models.families.video import VideoFamily
from lorakit.models.memory import MemoryEstimate, format_bytes, placement, quantize
from lorakit.training.setup import Session

_RANK_AXES = {
    "lora_A": 0, "lora_B": 1,
    "hada_w1_a": 1, "hada_w1_b": 0, "hada_w2_a": 1, "hada_w2_b": 0,
    "lokr_w1_a": 1, "lokr_w1_b": 0, "lokr_w2_a": 1, "lokr_w2_b": 0,
}  # fmt: skip
_FACTOR_NAME = re.compile(r"\.((?:lora_[AB]|hada_w\d_[ab]|lokr_w\d_[ab]))(?:\.weight)?$")


@dataclass(frozen=True)
class Remedy:
    """Overrides of a recipe, such as `resolution=384`, and the estimate of the memory with them."""

    overrides: tuple[str, ...]
    effect: str
    estimate: MemoryEstimate

    def __str__(self) -> str:
        return f"{' '.join(self.overrides)} ({self.effect})"


def memory_limit_error(
    session: Session, forward: Callable[[], torch.Tensor], step: int, reason: str
) -> MemoryLimitError:
    """Build the error for a step of which not even one image fits; `forward` is the step for one image."""
    estimate = estimate_session(session, forward)
    parts = [
        f"base {format_bytes(estimate.base_bytes)}",
        f"adapter with optimizer {format_bytes(estimate.adapter_bytes)}",
    ]
    if estimate.activation_bytes is not None:
        parts.append(f"activations of one image {format_bytes(estimate.activation_bytes)}")
    if estimate.other_bytes:
        parts.append(f"VAE and text encoders {format_bytes(estimate.other_bytes)}")
    remedies = find_remedies(session, estimate, forward)
    if remedies:
        remedy = "in a new run, " + "; or ".join(map(str, remedies))
    else:
        remedy = (
            "no setting of this recipe needs less memory: close other programs that use this memory,"
            " or use a smaller base model or a device with more memory"
        )
    return MemoryLimitError(
        f"out of memory with one image at a time; estimated: {', '.join(parts)}\n  {reason}",
        where=f"step {step}",
        remedy=remedy,
    )


def estimate_session(session: Session, forward: Callable[[], torch.Tensor] | None) -> MemoryEstimate:
    """Estimate the memory that a step of a session needs; `forward` is the step for one image."""
    others = [
        module
        for name in ("vae", *session.family.components.sampling_only, *_text_encoders(session))
        if isinstance(module := getattr(session.pipe, name, None), nn.Module)
    ]
    others += session.train_set.kept_text_encoders
    return memory.estimate_memory(session.denoiser, session.recipe.optimizer.name, forward, others)


def _text_encoders(session: Session) -> list[str]:
    return [name for name in session.pipe.components if name.startswith("text_encoder")]


def find_remedies(
    session: Session, estimate: MemoryEstimate, forward: Callable[[], torch.Tensor]
) -> list[Remedy]:
    """Return the changes of the recipe that need less memory, those that save most first.

    Measuring gradient checkpointing switches it on in the session's denoiser.
    """
    candidates = (
        _quantization(session, estimate),
        _precision(session, estimate),
        _resolution(session, estimate),
        _frames(session, estimate),
        _optimizer(session, estimate),
        _rank(session, estimate),
        _samples(session, estimate),
        _kept_text_encoders(session, estimate),
        _checkpointing(session, estimate, forward),
    )
    remedies = [remedy for candidate in candidates for remedy in candidate]
    remedies = [r for r in remedies if r.estimate.is_below(estimate) and _suits(session.recipe, r.overrides)]
    return sorted(remedies, key=lambda remedy: remedy.estimate.total_bytes)


def _suits(recipe: Recipe, overrides: tuple[str, ...]) -> bool:
    """Return True if the recipe accepts overrides that change it."""
    try:
        return change_recipe(recipe, overrides) != recipe
    except ConfigError:
        return False


def _quantization(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
    saved = quantize.bytes_saved(session.denoiser, "nf4") if session.memory_settings.quantize != "nf4" else 0
    if saved > 0:
        base = estimate.base_bytes - saved
        effect = f"base {format_bytes(base)} instead of {format_bytes(estimate.base_bytes)}"
        yield Remedy(("memory.quantize=nf4",), effect, replace(estimate, base_bytes=base))


def _precision(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
    """Half precision of the frozen base model, where the device keeps its weights in it."""
    before = devices.weight_dtype(session.device, session.recipe.train.precision)
    half = devices.supported_precisions(session.device)[0]
    after = devices.weight_dtype(session.device, half)
    if after.itemsize < before.itemsize:
        frozen = [p for p in session.denoiser.parameters() if not p.requires_grad and p.dtype == before]
        saved = sum(p.numel() for p in frozen) * (before.itemsize - after.itemsize)
        base = estimate.base_bytes - saved
        effect = f"base {format_bytes(base)} instead of {format_bytes(estimate.base_bytes)}"
        yield Remedy((f"train.precision={half}",), effect, replace(estimate, base_bytes=base))


def _resolution(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
    resolution, multiple = session.recipe.resolution, session.family.size_multiple(session.pipe)
    if smaller := int(resolution * 0.75) // multiple * multiple:
        share = (smaller / resolution) ** 2
        yield _with_activations((f"resolution={smaller}",), estimate, share)


def _frames(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
    family = session.family
    frames = max((len(item.frame_indices) for item in session.train_set.items), default=1)
    if isinstance(family, VideoFamily) and frames > 1:
        multiple = family.frame_multiple(session.pipe)
        before = (frames - 1) // multiple
        after = before // 2
        if after < before:
            overrides = (f"frames={after * multiple + 1}",)
            yield _with_activations(overrides, estimate, (after + 1) / (before + 1))


def _with_activations(overrides: tuple[str, ...], estimate: MemoryEstimate, share: float) -> Remedy:
    """Return a remedy that leaves a share of the activations."""
    if estimate.activation_bytes is None:
        return Remedy(overrides, f"activations about {share:.0%}", replace(estimate, unknown_share=share))
    activations = int(estimate.activation_bytes * share)
    effect = f"activations about {format_bytes(activations)}"
    return Remedy(overrides, effect, replace(estimate, activation_bytes=activations))


def _optimizer(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
    config = session.recipe.optimizer
    count = sum(p.numel() for _, p in all_trainable_parameters(session.networks))
    saved = count * (memory.optimizer_state_bytes(config.name) - memory.optimizer_state_bytes("adamw8bit"))
    if saved > 0:
        smaller = replace(estimate, adapter_bytes=estimate.adapter_bytes - saved)
        yield Remedy(("optimizer.name=adamw8bit",), f"saves {format_bytes(saved)}", smaller)


def _rank(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
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
    saved = int(count * memory.trained_bytes(recipe.optimizer.name))
    if saved and recipe.adapter.type == "oft" and smaller < 2:
        return  # blocks of one number rotate nothing
    overrides = [f"adapter.rank={smaller}"]
    if recipe.adapter.type not in ("oft", "none"):
        scale = smaller / rank
        alpha = recipe.adapter.alpha * (scale**0.5 if recipe.adapter.type == "rslora" else scale)
        overrides.append(f"adapter.alpha={alpha:g}")
    adapter = replace(estimate, adapter_bytes=estimate.adapter_bytes - saved)
    yield Remedy(tuple(overrides), f"saves {format_bytes(saved)}", adapter)


def _samples(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
    """No samples during the training, for which the VAE stays loaded."""
    if session.recipe.samples.prompts is None:
        return
    names = ("vae", *session.family.components.sampling_only)
    modules = [m for name in names if isinstance(m := getattr(session.pipe, name, None), nn.Module)]
    saved = sum(memory.total_bytes(module.parameters()) for module in modules)
    smaller = replace(estimate, other_bytes=estimate.other_bytes - saved)
    yield Remedy(("samples.prompts=null",), f"no samples; saves the VAE's {format_bytes(saved)}", smaller)


def _kept_text_encoders(session: Session, estimate: MemoryEstimate) -> Iterator[Remedy]:
    """Captions whose tags change, encoded before the first step instead of at each use."""
    encoders = session.train_set.kept_text_encoders
    saved = sum(memory.total_bytes(encoder.parameters()) for encoder in encoders)
    smaller = replace(estimate, other_bytes=estimate.other_bytes - saved)
    effect = f"all captions in the cache; saves the text encoders' {format_bytes(saved)}"
    yield Remedy(("memory.keep_text_encoders=false",), effect, smaller)


def _checkpointing(
    session: Session, estimate: MemoryEstimate, forward: Callable[[], torch.Tensor]
) -> Iterator[Remedy]:
    placed = placement.placement_of(session.denoiser)
    if placed is None or estimate.gradient_checkpointing >= 1:
        return
    placed.set_checkpointing(1.0)
    overrides, before = ("memory.gradient_checkpointing=1",), estimate.activation_bytes
    after = memory.activation_bytes(session.denoiser, forward) if before is not None else None
    if before is None or after is None:
        yield Remedy(overrides, "recomputes activations", replace(estimate, unknown_share=0.5))
        return
    effect = f"activations {format_bytes(after)} instead of {format_bytes(before)}"
    yield Remedy(overrides, effect, replace(estimate, activation_bytes=after))
