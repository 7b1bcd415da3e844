"""The adapter hidden in a fine-tuned model: its difference from the base, as LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from lorakit.adapters.formats import BaseWeights, DeltaWeight, low_rank
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import track_progress
from lorakit.models import families


def extract_adapter(
    base: Path,
    tuned: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    targets: str | None = None,
) -> tuple[dict[str, DeltaWeight], dict[str, float], str]:
    """(changes, share of the squared norm that each kept, family) of two diffusers folders of one family.

    Of every matrix that differs, or of those whose path `targets` matches. Biases, norms and text encoders
    are no part of it. Raises ConfigError for models of different shapes or without any difference.
    """
    if rank is None and energy is None:
        raise ConfigError("say how small", remedy="give --rank N or --energy 0.95")
    family = families.detect_family(base)
    if families.detect_family(tuned).name != family.name:
        raise ConfigError("base and tuned model are of different families", where=str(tuned))
    changes: dict[str, DeltaWeight] = {}
    kept: dict[str, float] = {}
    pattern = re.compile(targets) if targets else None
    modules = list(_matrix_modules(BaseWeights(base), BaseWeights(tuned), family.component, pattern))
    for module, one, two in track_progress(
        _weight_pairs(BaseWeights(base), BaseWeights(tuned), modules), "comparing", len(modules)
    ):
        difference = two.float() - one.float()
        if not difference.isfinite().all():
            raise DataError("the weights hold NaN or infinity", where=module)
        if not difference.any():
            continue
        low = low_rank.nearest_lora(difference, rank, energy or 1.0)
        lost = torch.linalg.vector_norm(difference - low.delta()) / torch.linalg.vector_norm(difference)
        changes[module], kept[module] = low, 1 - float(lost) ** 2
    if not changes:
        raise ConfigError("the two models do not differ in any matrix looked at", where=str(tuned))
    return changes, kept, family.name


def _matrix_modules(
    base: BaseWeights, tuned: BaseWeights, component: str, pattern: re.Pattern[str] | None
) -> Iterator[str]:
    there = tuned.files(component)
    for name in sorted(base.files(component)):
        module = f"{component}.{name.removesuffix('.weight')}"
        if not name.endswith(".weight") or (pattern and not pattern.search(module)):
            continue
        if name not in there:
            raise ConfigError(f"the tuned model has no {name}", where=str(tuned.folder))
        yield module


def _weight_pairs(
    base: BaseWeights, tuned: BaseWeights, modules: list[str]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for module in modules:
        one, two = base.read(module), tuned.read(module)
        if one.shape != two.shape:
            raise ConfigError(
                f"{module} is {tuple(two.shape)}, not {tuple(one.shape)}", where=str(tuned.folder)
            )
        if one.ndim in (2, 4):
            yield module, one, two
        else:
            yield module, one, one  # vectors and films have no low-rank form here
