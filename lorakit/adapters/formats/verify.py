"""Verify a file by reading its bytes back by the rules of the programs it is for, then write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.files import METADATA_KEY
from lorakit.adapters.formats import consumers, layouts, low_rank, metadata, precision
from lorakit.adapters.formats.base_weights import BaseWeights
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.adapters.formats.precision import Precision
from lorakit.adapters.formats.read import ADAPTER_FILE_NAMES, LoadedAdapter
from lorakit.core import safetensors_header, storage
from lorakit.core.errors import ConfigError, DataError, LorakitError
from lorakit.core.progress import print_line

TOLERANCE = 1e-5  # of the Frobenius norm of a delta weight, in float32
MAX_LOSS = 0.1
"""Largest part of a delta weight that a conversion may lose without being told to."""


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
    dtype: str = "fp32"
    """The number type of the factors."""
    token_file: Path | None = None
    """The file with the vectors of a new token, where the adapter has one and it was written beside this."""

    def to_json(self) -> dict[str, Any]:
        """Return the values that `--json` prints."""
        return {
            "path": str(self.path),
            "consumers": self.consumers,
            "layout": self.layout,
            "num_tensors": self.num_tensors,
            "dtype": self.dtype,
            "max_relative_error": self.max_relative_error,
            "approximated_modules": self.approximated_modules,
            "approximation_error": self.approximation_error,
            "token_file": str(self.token_file) if self.token_file else None,
        }

    def summary(self) -> str:
        """Return one line for people, with the approximation error if there is one."""
        readers = f"{self.layout}, read by {', '.join(self.consumers)}" if self.consumers else self.layout
        rounding = "" if self.dtype == "fp32" else f" ({self.dtype} rounding)"
        line = (
            f"{self.path}  {readers}, {self.num_tensors} tensors in {self.dtype}, verified to "
            f"{self.max_relative_error:.0e}{rounding}"
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


@dataclass(frozen=True)
class WriteOptions:
    """Settings of a written file."""

    base_weights: BaseWeights | None = None
    base: Path | None = None
    """The base model's folder, for the metadata."""
    include_names: bool = False
    """True to write the names of the file and of the base model into the metadata."""
    dtype: str = "fp32"
    """Number type of the factors: fp16, bf16 or fp32."""
    allow_loss: bool = False
    """True to write a conversion that loses more than `MAX_LOSS` of a delta weight."""


def write_verified(
    adapter: LoadedAdapter, family: str, plan: ExportPlan, target: Path, options: WriteOptions
) -> ExportedFile:
    """Write `plan` to `target` after its bytes were read back with the same delta weights.

    A plan without consumers is a conversion to a layout, which some program must read. A number type that
    cannot hold the delta weights (differences of large factors, as of PiSSA) gives way to float32, with a
    note. Raises LorakitError if the delta weights differ, ConfigError if too much is lost or no program reads
    the file.
    """
    base_weights = options.base_weights
    errors = _approximation_errors(adapter.deltas, plan.deltas, base_weights)
    _check_loss(errors, target, options.allow_loss)
    tensors = layouts.WRITERS[plan.layout](plan.deltas, family)
    if "comfyui" in plan.consumers or not plan.consumers:
        layouts.add_new_shapes(tensors, plan.deltas, family, plan.layout)
    output_name = target.stem if options.include_names else None

    def prove(dtype: str) -> tuple[bytes, _Proof]:
        rounding = precision.get_precision(dtype)
        rounded = precision.round_tensors(layouts.unshare_memory(tensors), rounding, str(target))
        text = metadata.build_metadata(adapter, family, plan.deltas, rounded, options.base, output_name)
        data = safetensors_header.safetensors_bytes(rounded, text)
        return data, _verify_bytes(family, plan, data, target, base_weights, rounding)

    dtype = options.dtype
    try:
        data, proof = prove(dtype)
    except LorakitError as error:
        if dtype == "fp32" or isinstance(error, ConfigError):
            raise
        data, proof = prove("fp32")
        print_line(f"note: {target.name} is in fp32, because {dtype} would change its delta weights too much")
        dtype = "fp32"
    storage.write_bytes(target, data)
    return ExportedFile(
        target,
        proof.consumers,
        plan.layout,
        len(tensors),
        proof.error,
        len(errors),
        max(errors.values(), default=0.0),
        dtype,
    )


def _check_loss(errors: Mapping[str, float], target: Path, allow_loss: bool) -> None:
    lost = {module: error for module, error in errors.items() if error > MAX_LOSS}
    if lost and not allow_loss:
        worst = max(lost, key=lambda module: lost[module])
        raise ConfigError(
            f"{len(lost)} modules would lose more than {100 * MAX_LOSS:.0f} % of their delta weight as the "
            f"nearest LoRA, {worst} {100 * lost[worst]:.0f} %",
            where=str(target),
            remedy="give a larger --max-rank, choose a layout that keeps the method, or add --allow-loss",
        )


def _approximation_errors(
    source: Mapping[str, DeltaWeight], written: Mapping[str, DeltaWeight], base_weights: BaseWeights | None
) -> dict[str, float]:
    """Return the errors of modules whose method was converted, without those that are exact."""
    errors = {}
    for module, delta in source.items():
        if type(written[module]) is not type(delta):
            base = base_weight_for(base_weights, module, delta)
            error = low_rank.relative_error(delta, written[module], base)
            if error > TOLERANCE:
                errors[module] = error
    return errors


@dataclass(frozen=True)
class _Proof:
    """The programs that read the bytes as trained, and the largest relative error of a delta weight."""

    consumers: tuple[str, ...]
    error: float


def _verify_bytes(
    family: str,
    plan: ExportPlan,
    data: bytes,
    target: Path,
    base_weights: BaseWeights | None,
    rounding: Precision,
) -> _Proof:
    """Read the bytes by the consumers' rules.

    Raises LorakitError that names modules which are missing, ignored or different for a consumer of the
    plan, and ConfigError if a plan without consumers is read by no program.
    """
    from safetensors.torch import load as load_bytes

    tensors, errors = load_bytes(data), {}
    header = safetensors_header.parse_header(data, str(target)).metadata
    refusals: dict[str, str] = {}
    for consumer, rule in _proof_rules(family, plan).items():
        reading = consumers.read_tensors(tensors, rule, family, header)
        result = consumers.answer(reading)
        if not result.loads:
            refusals[consumer] = str(result)
            continue
        try:
            errors[consumer] = _largest_error(reading, plan, target, base_weights, rounding)
        except LorakitError as error:
            if plan.consumers:
                raise
            refusals[consumer] = error.message
    refused = [f"{consumer}: {refusals[consumer]}" for consumer in plan.consumers if consumer in refusals]
    if refused:
        raise LorakitError(
            f"the file would not load as trained, so it is not written: {refused[0]}",
            where=str(target),
            remedy="this is a bug of lorakit; please report it with these names",
        )
    if not errors:
        raise ConfigError(
            f"no program reads this adapter in the {plan.layout} layout"
            + "".join(f"; {consumer}: {text}" for consumer, text in list(refusals.items())[:2]),
            where=str(target),
            remedy="choose another layout with --to; `lorakit export` finds the one that a program reads",
        )
    readers = tuple(consumer for consumer in errors if consumer != _PEFT)
    return _Proof(readers, max(errors.values()))


_PEFT = "peft"
"""diffusers' own networks with peft: reads dotted names of every family."""


def _proof_rules(family: str, plan: ExportPlan) -> dict[str, consumers.LoaderRule]:
    """Return the rules by which a file is read back: of its consumers, else of all that read the layout."""
    names = plan.consumers or consumers.ALL_CONSUMERS
    rules = {name: consumers.rule_for(family, name) for name in names}
    result = {name: rule for name, rule in rules.items() if rule is not None and plan.layout in rule.layouts}
    if plan.layout == "diffusers" and not plan.consumers:
        result[_PEFT] = consumers.PEFT_RULE
    return result


def _largest_error(
    reading: consumers.Reading,
    plan: ExportPlan,
    target: Path,
    base_weights: BaseWeights | None,
    rounding: Precision,
) -> float:
    """Return the largest relative error of the delta weights that a consumer reads.

    Raises LorakitError if one is missing, differs, or was not trained.
    """
    try:
        result = reading.deltas()
    except DataError as error:
        raise _difference([str(error)], target) from error
    # a fused layer has a delta for every member, which is zero for those that were not trained
    unexpected = {module for module in result.keys() - plan.deltas.keys() if result[module].dense().any()}
    missing = sorted(unexpected | (plan.deltas.keys() - result.keys()))
    errors = {
        module: low_rank.relative_error(delta, result[module], base_weight_for(base_weights, module, delta))
        for module, delta in plan.deltas.items()
        if module in result and not (base_weights is None and delta.needs_base)
    }
    wrong = missing + [module for module, error in errors.items() if not error <= rounding.tolerance]
    if wrong:
        raise _difference(wrong, target)
    return max(errors.values(), default=0.0)


def _difference(wrong: list[str], target: Path) -> LorakitError:
    return LorakitError(
        f"the file would not load as trained, so it is not written: {', '.join(wrong[:5])}",
        where=str(target),
        remedy="this is a bug of lorakit; please report it with these names",
    )
