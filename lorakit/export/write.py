"""Plan, prove and write the files of an export."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakit import families, places, storage
from lorakit.errors import ConfigError, LorakitError, NumericError
from lorakit.export import consumers, layouts, lowrank, metadata
from lorakit.export.adapter_file import FACTS, Adapter, load, parse
from lorakit.export.changes import Change, Dora, LowRank
from lorakit.export.native import owner
from lorakit.export.weights import Weights

CONSUMERS = consumers.NAMES
_CONVOLUTION = re.compile(r"^unet\..*(conv|proj_in|proj_out)")
TOLERANCE = 1e-5  # of the Frobenius norm of a weight's change


@dataclass(frozen=True)
class Exported:
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


@dataclass(frozen=True)
class _Plan:
    """One file to write, and what it holds: `changes` as they will stand in it."""

    consumers: tuple[str, ...]
    layout: str
    suffix: str
    changes: dict[str, Change]


def export_adapter(
    adapter: Path,
    consumer: str,
    out: Path,
    *,
    base: Path | None = None,
    force: bool = False,
    family: str | None = None,
    rank: int | None = None,
    private: bool = False,
) -> list[Exported]:
    """Write `adapter` for a consumer ("comfyui", "a1111", "diffusers") or for "all" that can read it.

    `out` is a folder, or the .safetensors file to write. With `base`, the model's folder, the adapter is also
    held against the model's own modules and shapes; DoRA for web interfaces and OFT need it. `family` names
    the model's family where the file does not. What a consumer cannot hold as it is becomes the nearest LoRA
    of at most `rank`, and the error is told. `force` lets an adapter through that changes nothing; `private`
    writes the names of file and base into the metadata.
    Raises ConfigError where a consumer cannot read it, NumericError for untrained or non-finite weights.
    """
    places.check_new(out, "out")
    if consumer not in (*CONSUMERS, "all"):
        raise ConfigError(f"unknown consumer {consumer!r}", remedy=f"known: {', '.join(CONSUMERS)}, all")
    source = load(adapter, family)
    known = _family(source, str(adapter))
    check_numbers(source, str(adapter), force=force)
    weights = None if base is None else Weights(base)
    if base is not None:
        _check_base(source, known, adapter, base)
    readers = consumers.readers(known, source.changes)
    if consumer != "all" and consumer not in readers:
        raise consumers.refusal(known, consumer, source.changes, str(adapter))
    if not readers:
        raise consumers.refusal(known, next(iter(consumers.rules(known))), source.changes, str(adapter))
    wanted = readers if consumer == "all" else (consumer, *(r for r in readers if r != consumer))
    plans = _plans(source, known, wanted, weights, rank)
    if consumer != "all":
        plans = plans[:1]
    _check_target(out, plans, adapter)
    return [
        _write(source, known, plan, _target(adapter, out, plan), weights, base, private) for plan in plans
    ]


def _family(source: Adapter, where: str) -> str:
    if source.family is not None:
        return source.family
    said = f"it could be {', '.join(source.families)}" if source.families else "its names fit none"
    raise ConfigError(
        f"the file does not say which family it belongs to: {said}", where=where, remedy="give --family NAME"
    )


def check_numbers(source: Adapter, where: str, *, force: bool = False) -> None:
    """NumericError for NaN, infinity, or, without `force`, an adapter that changes nothing."""
    for module, change in source.changes.items():
        if not all(bool(tensor.isfinite().all()) for tensor in change.tensors()):
            raise NumericError(
                "the adapter holds NaN or infinity", where=f"{where}, {module.split('.', 1)[1]}"
            )
    if not force and not any(_acts(change) for change in source.changes.values()):
        raise NumericError(
            "the adapter changes nothing: all of its weights are zero",
            where=where,
            remedy="train it first; force writes it all the same",
        )


def _acts(change: Change) -> bool:
    return change.needs_base or all(bool(tensor.any()) for tensor in change.tensors())


def _check_base(source: Adapter, known: str, adapter: Path, base: Path) -> None:
    """The adapter's modules exist in the model, with these shapes."""
    family = families.find(base)
    if family.name != known:
        raise ConfigError(f"a {known} adapter does not fit a {family.name} model", where=str(base))
    shapes = families.shapes(base, family.component)
    wrong = [
        module
        for module, change in source.of(family.component).items()
        if module not in shapes or not _fits(change.shape, shapes[module])
    ]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} modules do not fit the model, first {', '.join(wrong[:5])}",
            where=str(adapter),
            remedy="give the base it was trained on",
        )


def _fits(change: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Same outputs, and as many numbers for each: some kinds keep a convolution flat, a rotation one axis."""
    if 0 in change:
        return all(mine in (0, its) for mine, its in zip(change, weight, strict=False))
    return change[0] == weight[0] and math.prod(change) == math.prod(weight)


def _plans(
    source: Adapter, family: str, readers: tuple[str, ...], weights: Weights | None, rank: int | None
) -> list[_Plan]:
    """As few files as serve all readers: one for each layout, and for each way of stating the numbers."""
    plain = all(isinstance(change, LowRank) for change in source.changes.values())
    groups: dict[tuple[str, str], list[str]] = {}
    for consumer in readers:
        way = "" if plain else "diffusers" if consumer == "diffusers" else "webui"
        # diffusers drops the magnitudes of kohya's layout, and reads them in its own for every family
        layout = way if way == "diffusers" else consumers.rules(family)[consumer].layout
        groups.setdefault((layout, way), []).append(consumer)
    return [
        _Plan(
            tuple(sorted(group, key=CONSUMERS.index)),
            layout,
            "-".join(sorted(group, key=CONSUMERS.index)) if way else layout,
            {
                module: _stated(module, change, group[0], layout, family, weights, rank)
                for module, change in source.changes.items()
            },
        )
        for (layout, way), group in groups.items()
    ]


def _stated(
    module: str,
    change: Change,
    consumer: str,
    layout: str,
    family: str,
    weights: Weights | None,
    rank: int | None,
) -> Change:
    """A change in the form and with the numbers that a consumer reads."""
    if isinstance(change, LowRank):
        return change
    fused = layout == "native" and len((owner(family, module.split(".", 1)[1]) or ("", [""]))[1]) > 1
    base = _weight(weights, module, change)
    if layouts.writable(change, consumer) and not fused:
        if not isinstance(change, Dora) or consumer == "diffusers":
            return change
        return change.restated("base", base) if base is not None else change
    low = lowrank.lowered(change, base, rank)
    return low.with_kernel(_kernel(weights, module)) if len(low.shape) == 2 else low


def _kernel(weights: Weights | None, module: str) -> tuple[int, ...]:
    """The kernel of a module whose change does not tell: LoHa and LoKr keep convolutions flat."""
    if weights is not None:
        return tuple(weights.read(module).shape[2:])
    if not _CONVOLUTION.search(module):
        return ()
    raise ConfigError(
        "the change of a convolution is stored flat, and its kernel is not known",
        where=module,
        remedy="give --base FOLDER, the base it was trained on",
    )


def _weight(weights: Weights | None, module: str, change: Change) -> torch.Tensor | None:
    if not change.needs_base:
        return None
    if weights is None:
        raise ConfigError(
            f"what {change.kind} changes depends on the base's weights",
            where=module,
            remedy="give --base FOLDER, the base it was trained on",
        )
    return weights.read(module).float()


def _check_target(out: Path, plans: list[_Plan], adapter: Path) -> None:
    if out.suffix == ".safetensors" and len(plans) > 1:
        names = "; ".join(f"{plan.layout} for {', '.join(plan.consumers)}" for plan in plans)
        raise ConfigError(
            f"no one file serves all: {names}", where=str(adapter), remedy="give a folder, or one consumer"
        )


def _target(adapter: Path, out: Path, plan: _Plan) -> Path:
    target = out if out.suffix == ".safetensors" else out / f"{adapter.stem}-{plan.suffix}.safetensors"
    check_overwrite(target, adapter)
    return target


def check_overwrite(target: Path, *sources: Path) -> None:
    """Refuse to write over a file that was read, or that is not lorakit's."""
    if not target.exists():
        return
    if any(target.resolve() == source.resolve() for source in sources):
        raise ConfigError("an export never replaces the adapter it is made from", where=str(target))
    if FACTS not in storage.read_safetensors_metadata(target):
        raise ConfigError(
            "this file is not lorakit's, so it is kept", where=str(target), remedy="name another"
        )


def _write(
    source: Adapter,
    family: str,
    plan: _Plan,
    target: Path,
    weights: Weights | None,
    base: Path | None,
    private: bool,
) -> Exported:
    tensors = layouts.WRITERS[plan.layout](plan.changes, family)
    name = target.stem if private else None
    data = storage.safetensors_bytes(
        tensors, metadata.build(source, family, plan.changes, tensors, base, name)
    )
    error = _prove(family, plan, data, target, weights)
    lossy = _approximations(source.changes, plan.changes, weights)
    storage.write_bytes(target, data)
    return Exported(
        target, plan.consumers, plan.layout, len(tensors), error, len(lossy), max(lossy, default=0.0)
    )


def _approximations(
    source: Mapping[str, Change], stated: Mapping[str, Change], weights: Weights | None
) -> list[float]:
    """Errors of the modules whose form had to change, those that came out exact left out."""
    errors = []
    for module, change in source.items():
        if type(stated[module]) is not type(change):
            error = lowrank.relative_error(change, stated[module], _weight(weights, module, change))
            if error > TOLERANCE:
                errors.append(error)
    return errors


def _prove(family: str, plan: _Plan, data: bytes, target: Path, weights: Weights | None) -> float:
    """Read the bytes as the consumers would; the worst relative error, or an error that names keys."""
    copy = parse(data, str(target), family)
    # fused layers give every member a change, that of one which was not trained being zero
    extra = {m for m in copy.changes.keys() - plan.changes.keys() if copy.changes[m].delta().any()}
    lost = sorted(extra | (plan.changes.keys() - copy.changes.keys()))
    unread = [m for name in plan.consumers for m in consumers.unread(family, name, copy.changes)]
    errors = {
        module: lowrank.relative_error(change, copy.changes[module], _weight(weights, module, change))
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
