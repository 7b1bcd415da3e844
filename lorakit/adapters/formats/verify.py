"""Prove a file by reading its bytes back, then write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.formats import consumers, layouts, low_rank, metadata
from lorakit.adapters.formats.base_weights import BaseWeights
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.read import LORAKIT_KEY, LoadedAdapter, parse_adapter
from lorakit.core import storage
from lorakit.core.errors import ConfigError, LorakitError

TOLERANCE = 1e-5  # of the Frobenius norm of a weight's change


@dataclass(frozen=True)
class ExportedFile:
    """One written file. `max_relative_error`: the worst module's error of the weight change, as read back."""

    path: Path
    consumers: tuple[str, ...]
    layout: str
    keys: int
    max_relative_error: float
    approximated: int = 0
    """Modules whose change the consumer cannot hold, and that became the nearest LoRA."""
    approximation_error: float = 0.0
    """The worst relative error of those."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for scripts."""
        row = {"path": str(self.path), "for": self.consumers, "layout": self.layout, "keys": self.keys}
        return row | {"approximated": self.approximated, "approximation_error": self.approximation_error}

    def text(self) -> str:
        """One line for people; what could not be held exactly is said."""
        line = f"{self.path}  for {', '.join(self.consumers)}, proven to {self.max_relative_error:.0e}"
        if not self.approximated:
            return line
        worst = f"off by up to {100 * self.approximation_error:.2g} %"
        return f"{line}; {self.approximated} modules became the nearest LoRA, {worst}"


@dataclass(frozen=True)
class ExportPlan:
    """One file to write, and what it holds: `changes` as they will stand in it."""

    consumers: tuple[str, ...]
    layout: str
    suffix: str
    changes: dict[str, DeltaWeight]


def base_weight_for(weights: BaseWeights | None, module: str, change: DeltaWeight) -> torch.Tensor | None:
    """The base's weight in float32 where a change needs it, else None; ConfigError when it is not there."""
    if not change.needs_base:
        return None
    if weights is None:
        raise ConfigError(
            f"what {change.kind} changes depends on the base's weights",
            where=module,
            remedy="give --base FOLDER, the base it was trained on",
        )
    return weights.read(module).float()


def require_overwritable(target: Path, *sources: Path) -> None:
    """Refuse to write over a file that was read, or that is not lorakit's."""
    if not target.exists():
        return
    if any(target.resolve() == source.resolve() for source in sources):
        raise ConfigError("an export never replaces the adapter it is made from", where=str(target))
    if LORAKIT_KEY not in storage.read_safetensors_metadata(target):
        raise ConfigError(
            "this file is not lorakit's, so it is kept", where=str(target), remedy="name another"
        )


def write_verified(
    source: LoadedAdapter,
    family: str,
    plan: ExportPlan,
    target: Path,
    weights: BaseWeights | None,
    base: Path | None,
    private: bool,
) -> ExportedFile:
    """Write `plan` as `target` after its bytes were read back and found equal; LorakitError otherwise."""
    tensors = layouts.unshare_memory(layouts.WRITERS[plan.layout](plan.changes, family))
    name = target.stem if private else None
    data = storage.safetensors_bytes(
        tensors, metadata.build_metadata(source, family, plan.changes, tensors, base, name)
    )
    error = _verify_bytes(family, plan, data, target, weights)
    lossy = _approximation_errors(source.changes, plan.changes, weights)
    storage.write_bytes(target, data)
    return ExportedFile(
        target, plan.consumers, plan.layout, len(tensors), error, len(lossy), max(lossy, default=0.0)
    )


def _approximation_errors(
    source: Mapping[str, DeltaWeight], stated: Mapping[str, DeltaWeight], weights: BaseWeights | None
) -> list[float]:
    """Errors of the modules whose form had to change, those that came out exact left out."""
    errors = []
    for module, change in source.items():
        if type(stated[module]) is not type(change):
            error = low_rank.relative_error(change, stated[module], base_weight_for(weights, module, change))
            if error > TOLERANCE:
                errors.append(error)
    return errors


def _verify_bytes(
    family: str, plan: ExportPlan, data: bytes, target: Path, weights: BaseWeights | None
) -> float:
    """Read the bytes as the consumers would; the worst relative error, or an error that names keys."""
    copy = parse_adapter(data, str(target), family)
    # fused layers give every member a change, that of one which was not trained being zero
    extra = {m for m in copy.changes.keys() - plan.changes.keys() if copy.changes[m].delta().any()}
    lost = sorted(extra | (plan.changes.keys() - copy.changes.keys()))
    unread = [m for name in plan.consumers for m in consumers.unsupported_modules(family, name, copy.changes)]
    errors = {
        module: low_rank.relative_error(
            change, copy.changes[module], base_weight_for(weights, module, change)
        )
        for module, change in plan.changes.items()
        if module in copy.changes and not (weights is None and change.needs_base)
    }
    wrong = lost + unread + [module for module, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        raise LorakitError(
            f"the export would not load as trained, so it is not written: {', '.join(wrong[:5])}",
            where=str(target),
            remedy="this is a defect of lorakit; please report it with these names",
        )
    return max(errors.values(), default=0.0)
