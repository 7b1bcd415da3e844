"""Extract the adapter of a fine-tuned model: its difference from the base model, as LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakit.adapters.formats import BaseWeights, DeltaWeight, LoadedAdapter, low_rank
from lorakit.adapters.tools.combine import ReducedAdapter, check_rank_or_energy
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import track_progress
from lorakit.models import families


@dataclass(frozen=True)
class _WeightPair:
    """A module's weight in the base model and in the fine-tuned one."""

    module: str
    base: torch.Tensor
    tuned: torch.Tensor


def extract_adapter(
    base: Path,
    tuned: Path,
    *,
    max_rank: int | None = None,
    energy: float | None = None,
    targets: str | None = None,
) -> ReducedAdapter:
    """Return the difference of two models, given as diffusers folders of one family, as LoRA.

    It covers all matrices of the denoiser that differ, or those whose name matches the regular expression
    `targets`; not biases, norms and text encoders. The LoRA has at most `max_rank`, or the smallest rank that
    retains `energy` (0 to 1) of the squared norm.
    Raises ConfigError for models of different families or shapes, and for equal models; DataError for NaN or
    infinity.
    """
    check_rank_or_energy(max_rank, energy)
    family = families.detect_family(base)
    if families.detect_family(tuned).name != family.name:
        raise ConfigError(
            "the base model and the fine-tuned model are of different families",
            where=str(tuned),
            remedy="give the base model that it was trained from",
        )
    deltas: dict[str, DeltaWeight] = {}
    retained_energy: dict[str, float] = {}
    base_weights, tuned_weights = BaseWeights(base), BaseWeights(tuned)
    pattern = re.compile(targets) if targets else None
    modules = list(_matrix_modules(base_weights, tuned_weights, family.components.denoiser, pattern))
    if not modules:
        raise ConfigError(
            f"no weight of the {family.components.denoiser} matches {targets!r}",
            where="targets",
            remedy="the expression is searched in names such as"
            f" {next(iter(_matrix_modules(base_weights, tuned_weights, family.components.denoiser, None)))}",
        )
    pairs = _weight_pairs(base_weights, tuned_weights, modules)
    for pair in track_progress(pairs, "comparing", len(modules)):
        difference = pair.tuned.float() - pair.base.float()
        if not difference.isfinite().all():
            raise DataError("the weights contain NaN or infinity", where=pair.module)
        if not difference.any():
            continue
        lora = low_rank.nearest_lora(difference, max_rank, energy or 1.0)
        lost = torch.linalg.vector_norm(difference - lora.dense()) / torch.linalg.vector_norm(difference)
        deltas[pair.module], retained_energy[pair.module] = lora, 1 - float(lost) ** 2
    if not deltas:
        raise ConfigError(
            "the two models do not differ in any compared matrix",
            where=str(tuned),
            remedy="check the folders, and the modules that --targets matches",
        )
    adapter = LoadedAdapter(deltas, "diffusers", possible_families=(family.name,))
    return ReducedAdapter(adapter, retained_energy)


def _matrix_modules(
    base: BaseWeights, tuned: BaseWeights, component: str, pattern: re.Pattern[str] | None
) -> Iterator[str]:
    tuned_files = tuned.files(component)
    for name in sorted(base.files(component)):
        module = f"{component}.{name.removesuffix('.weight')}"
        if not name.endswith(".weight") or (pattern and not pattern.search(module)):
            continue
        if name not in tuned_files:
            raise ConfigError(f"the fine-tuned model has no {name}", where=str(tuned.folder))
        yield module


def _weight_pairs(base: BaseWeights, tuned: BaseWeights, modules: list[str]) -> Iterator[_WeightPair]:
    for module in modules:
        base_weight, tuned_weight = base.read_weight(module), tuned.read_weight(module)
        if base_weight.shape != tuned_weight.shape:
            raise ConfigError(
                f"{module} has the shape {tuple(tuned_weight.shape)}, "
                f"in the base model {tuple(base_weight.shape)}",
                where=str(tuned.folder),
            )
        if base_weight.ndim in (2, 4):
            yield _WeightPair(module, base_weight, tuned_weight)
        else:  # vectors and 3D convolutions have no low-rank form here: no difference
            yield _WeightPair(module, base_weight, base_weight)
