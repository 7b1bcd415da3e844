"""Verify a file by reading its bytes back, then write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.files import METADATA_KEY
from lorakit.adapters.formats import consumers, layouts, low_rank, metadata
from lorakit.adapters.formats.base_weights import BaseWeights
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.read import ADAPTER_FILE_NAMES, LoadedAdapter, parse_adapter
from lorakit.core import safetensors_header, storage
from lorakit.core.errors import ConfigError, LorakitError

TOLERANCE = 1e-5  # of the Frobenius norm of a delta weight


@dataclass(frozen=True)
class ExportedFile:
    """One written file."""

    path: Path
    consumers: tuple[str, ...]
    """The programs that read it."""
    layout: str
    num_tensors: int
    max_relative_error: float
    """The largest error of a delta weight as it was read back, relative to its norm."""
    approximated_modules: int = 0
    """Number of modules whose method the consumer does not support, so that they became the nearest LoRA."""
    approximation_error: float = 0.0
    """The largest relative error of those modules."""
    token_file: Path | None = None
    """The file with the vectors of a new token, where the adapter has one and it was written beside this."""

    def to_json(self) -> dict[str, Any]:
        """Return the values that `--json` prints."""
        return {
            "path": str(self.path),
            "consumers": self.consumers,
            "layout": self.layout,
            "num_tensors": self.num_tensors,
            "approximated_modules": self.approximated_modules,
            "approximation_error": self.approximation_error,
            "token_file": str(self.token_file) if self.token_file else None,
        }

    def summary(self) -> str:
        """Return one line for people, with the approximation error if there is one."""
        readers = f"for {', '.join(self.consumers)}" if self.consumers else self.layout
        line = (
            f"{self.path}  {readers}, {self.num_tensors} tensors, verified to {self.max_relative_error:.0e}"
        )
        if self.token_file:
            line += f"; the new token is in {self.token_file}"
        if not self.approximated_modules:
            return line
        error = f"with an error of up to {100 * self.approximation_error:.2g} %"
        return f"{line}; {self.approximated_modules} modules became the nearest LoRA, {error}"


@dataclass(frozen=True)
class ExportPlan:
    """One file to write: the consumers, the layout, the suffix of its name, and the deltas to store."""

    consumers: tuple[str, ...]
    layout: str
    suffix: str
    deltas: dict[str, DeltaWeight]


def base_weight_for(base_weights: BaseWeights | None, module: str, delta: DeltaWeight) -> torch.Tensor | None:
    """Return the base model's weight in float32 if a delta needs it, else None.

    Raises ConfigError if it is needed and there is no base model.
    """
    if not delta.needs_base:
        return None
    if base_weights is None:
        raise ConfigError(
            f"the delta weight of {delta.method} depends on the weights of the base model",
            where=module,
            remedy="give --base FOLDER, the base model that the adapter was trained on",
        )
    return base_weights.read_weight(module).float()


def require_overwritable(target: Path, *sources: Path) -> None:
    """Raise ConfigError if `target` exists and is one of the sources, or if lorakit did not write it."""
    if not target.exists():
        return
    files = [source / name for source in sources for name in ("", *ADAPTER_FILE_NAMES)]
    if target.resolve() in {file.resolve() for file in files}:
        raise ConfigError(
            "the output must not replace the adapter that it is made from",
            where=str(target),
            remedy="give another name",
        )
    if METADATA_KEY not in storage.read_safetensors_metadata(target):
        raise ConfigError(
            "lorakit did not write this file, so it is not replaced",
            where=str(target),
            remedy="give another name",
        )


def write_verified(
    adapter: LoadedAdapter,
    family: str,
    plan: ExportPlan,
    target: Path,
    base_weights: BaseWeights | None,
    base: Path | None = None,
    include_names: bool = False,
) -> ExportedFile:
    """Write `plan` to `target` after its bytes were read back with the same delta weights.

    `base`, the base model's folder, and `include_names` add metadata. Raises LorakitError if they differ.
    """
    tensors = layouts.unshare_memory(layouts.WRITERS[plan.layout](plan.deltas, family))
    output_name = target.stem if include_names else None
    data = safetensors_header.safetensors_bytes(
        tensors, metadata.build_metadata(adapter, family, plan.deltas, tensors, base, output_name)
    )
    error = _verify_bytes(family, plan, data, target, base_weights)
    errors = _approximation_errors(adapter.deltas, plan.deltas, base_weights)
    storage.write_bytes(target, data)
    return ExportedFile(
        target, plan.consumers, plan.layout, len(tensors), error, len(errors), max(errors, default=0.0)
    )


def _approximation_errors(
    source: Mapping[str, DeltaWeight], written: Mapping[str, DeltaWeight], base_weights: BaseWeights | None
) -> list[float]:
    """Return the errors of modules whose method was converted, without those that are exact."""
    errors = []
    for module, delta in source.items():
        if type(written[module]) is not type(delta):
            base = base_weight_for(base_weights, module, delta)
            error = low_rank.relative_error(delta, written[module], base)
            if error > TOLERANCE:
                errors.append(error)
    return errors


def _verify_bytes(
    family: str, plan: ExportPlan, data: bytes, target: Path, base_weights: BaseWeights | None
) -> float:
    """Read the bytes by the consumers' rules; return the largest relative error.

    Raises LorakitError that names modules which are missing, ignored or different.
    """
    reread = parse_adapter(data, str(target), family)
    # a fused layer has a delta for every member, which is zero for those that were not trained
    unexpected = {
        module for module in reread.deltas.keys() - plan.deltas.keys() if reread.deltas[module].dense().any()
    }
    missing = sorted(unexpected | (plan.deltas.keys() - reread.deltas.keys()))
    ignored = [
        module
        for consumer in plan.consumers
        for module in consumers.unsupported_modules(family, consumer, reread.deltas)
    ]
    errors = {
        module: low_rank.relative_error(
            delta, reread.deltas[module], base_weight_for(base_weights, module, delta)
        )
        for module, delta in plan.deltas.items()
        if module in reread.deltas and not (base_weights is None and delta.needs_base)
    }
    wrong = missing + ignored + [module for module, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        raise LorakitError(
            f"the file would not load as trained, so it is not written: {', '.join(wrong[:5])}",
            where=str(target),
            remedy="this is a bug of lorakit; please report it with these names",
        )
    return max(errors.values(), default=0.0)
