"""Plan the files of an export: as few as serve all readers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from lorakit.adapters import textual_inversion
from lorakit.adapters.formats import consumers, experts, layouts, low_rank, verify
from lorakit.adapters.formats.base_weights import BaseWeights
from lorakit.adapters.formats.delta_weights import DeltaWeight, DoraDelta, LoraDelta
from lorakit.adapters.formats.native_names import is_modulation_swapped, native_module
from lorakit.adapters.formats.read import LoadedAdapter, read_adapter_file
from lorakit.adapters.formats.verify import ExportedFile, ExportPlan, base_weight_for
from lorakit.core import output_paths, storage
from lorakit.core.errors import ConfigError, NumericError
from lorakit.models import families

CONSUMERS = consumers.CONSUMERS
_CONVOLUTION = re.compile(r"^unet\..*(conv|proj_in|proj_out)")


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
) -> list[ExportedFile]:
    """Write `adapter` for a consumer ("comfyui", "a1111", "diffusers") or for "all" that can read it.

    `out` is a folder, or the .safetensors file to write; a new word gets a file of its own there. With
    `base`, the model's folder, the adapter is also held against the model's own modules and shapes; DoRA for
    web interfaces and OFT need it. `family` names the model's family where the file does not. What a consumer
    cannot hold as it is becomes the nearest LoRA of at most `rank`, and the error is told. `force` lets an
    adapter through that changes nothing; `private` writes the names of file and base into the metadata.
    Raises ConfigError where a consumer cannot read it, NumericError for untrained or non-finite weights.
    """
    output_paths.check_output_path(out, "out")
    if consumer not in (*CONSUMERS, "all"):
        raise ConfigError(f"unknown consumer {consumer!r}", remedy=f"known: {', '.join(CONSUMERS)}, all")
    source = read_adapter_file(adapter, family, word_alone=True)
    known = require_family(source, str(adapter))
    if not source.changes:
        return _export_embedding(source, known, consumer, out)
    if not force:
        _require_trained(source, str(adapter))
    files = []
    for name, component, part in experts.split_experts(source):
        weights = None if base is None else BaseWeights(base, {experts.HIGH_NOISE: component})
        if base is not None:
            _check_base(part, known, adapter, base)
        plans = _plans_for_consumer(part, known, consumer, weights, rank, adapter)
        files += [
            (part, replace(plan, suffix="-".join(filter(None, (name, plan.suffix)))), weights)
            for plan in plans
        ]
    _check_target(out, [plan for _, plan, _ in files], adapter)
    made = [
        verify.write_verified(part, known, plan, _target(adapter, out, plan), weights, base, private)
        for part, plan, weights in files
    ]
    return made + _export_embedding(source, known, consumer, out)


def _plans_for_consumer(
    source: LoadedAdapter,
    known: str,
    consumer: str,
    weights: BaseWeights | None,
    rank: int | None,
    adapter: Path,
) -> list[ExportPlan]:
    """The files of one network for a consumer, or for all."""
    readers = consumers.supporting_consumers(known, source.changes)
    if consumer != "all" and consumer not in readers:
        raise consumers.unsupported_error(known, consumer, source.changes, str(adapter))
    if not readers:
        raise consumers.unsupported_error(
            known, next(iter(consumers.loader_rules(known))), source.changes, str(adapter)
        )
    wanted = readers if consumer == "all" else (consumer, *(r for r in readers if r != consumer))
    plans = _group_plans(source, known, wanted, weights, rank)
    return plans if consumer == "all" else plans[:1]


def require_family(source: LoadedAdapter, where: str) -> str:
    """The adapter's family; ConfigError that names the candidates where it is not certain."""
    if source.family is not None:
        return source.family
    said = f"it could be {', '.join(source.families)}" if source.families else "its names fit none"
    raise ConfigError(
        f"the file does not say which family it belongs to: {said}", where=where, remedy="give --family NAME"
    )


def _require_trained(source: LoadedAdapter, where: str) -> None:
    """NumericError for an adapter that changes nothing."""
    if not any(_has_effect(change) for change in source.changes.values()):
        raise NumericError(
            "the adapter changes nothing: all of its weights are zero",
            where=where,
            remedy="train it first; force writes it all the same",
        )


def _has_effect(change: DeltaWeight) -> bool:
    return change.needs_base or all(bool(tensor.any()) for tensor in change.tensors())


def _check_base(source: LoadedAdapter, known: str, adapter: Path, base: Path) -> None:
    """The adapter's modules exist in the model, with these shapes."""
    family = families.family_for_adapter(base, known)
    if family.name != known:
        raise ConfigError(f"a {known} adapter does not fit a {family.name} model", where=str(base))
    shapes = families.weight_shapes(base, family.component)
    wide = set(family.targets) - {*families.ATTENTION_TARGETS} if family.widens else set()
    wrong = [
        module
        for module, change in source.of(family.component).items()
        if module not in shapes or not (module in wide or _shapes_match(change.shape, shapes[module]))
    ]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} modules do not fit the model, first {', '.join(wrong[:5])}",
            where=str(adapter),
            remedy="give the base it was trained on",
        )


def _shapes_match(change: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Same outputs, and as many numbers for each: some kinds keep a convolution flat, a rotation one axis."""
    if 0 in change:
        return all(mine in (0, its) for mine, its in zip(change, weight, strict=False))
    return change[0] == weight[0] and math.prod(change) == math.prod(weight)


def _group_plans(
    source: LoadedAdapter,
    family: str,
    readers: tuple[str, ...],
    weights: BaseWeights | None,
    rank: int | None,
) -> list[ExportPlan]:
    """As few files as serve all readers: one for each layout, and for each way of stating the numbers."""
    plain = all(isinstance(change, LoraDelta) for change in source.changes.values())
    turned = any(isinstance(change, DoraDelta) for change in source.changes.values())
    groups: dict[tuple[str, str], list[str]] = {}
    for consumer in readers:
        way = "" if plain else "diffusers" if consumer == "diffusers" else "webui"
        way = consumer if turned and consumers.divides_by_input_norm(family, consumer) else way
        # diffusers drops the magnitudes of kohya's layout, and reads them in its own for every family
        layout = way if way == "diffusers" else consumers.loader_rules(family)[consumer].layout
        groups.setdefault((layout, way), []).append(consumer)
    return [
        ExportPlan(
            tuple(sorted(group, key=CONSUMERS.index)),
            layout,
            "-".join(sorted(group, key=CONSUMERS.index)) if way else layout,
            {
                module: _convert_delta(module, change, group[0], layout, family, weights, rank)
                for module, change in source.changes.items()
            },
        )
        for (layout, way), group in groups.items()
    ]


def convert_deltas(
    source: LoadedAdapter, family: str, layout: str, weights: BaseWeights | None, rank: int | None = None
) -> dict[str, DeltaWeight]:
    """All changes as a layout holds them, read as its own tools read it."""
    consumer = "diffusers" if layout == "diffusers" else "comfyui"
    return {
        module: _convert_delta(module, change, consumer, layout, family, weights, rank)
        for module, change in source.changes.items()
    }


def _convert_delta(
    module: str,
    change: DeltaWeight,
    consumer: str,
    layout: str,
    family: str,
    weights: BaseWeights | None,
    rank: int | None,
) -> DeltaWeight:
    """A change in the form and with the numbers that a consumer reads."""
    if isinstance(change, LoraDelta):
        return change
    name, members = native_module(family, module.split(".", 1)[1]) or (module, [module])
    fused = layout == "native" and len(members) > 1
    base = base_weight_for(weights, module, change)
    # ComfyUI and Forge swap the halves of a change under a diffusers name, and not those of its magnitudes
    renamed = layout == "diffusers" and consumer != "diffusers"
    torn = renamed and isinstance(change, DoraDelta) and is_modulation_swapped(name, module, change)
    if layouts.is_supported_method(change, family, consumer) and not fused and not torn:
        if not isinstance(change, DoraDelta) or consumer == "diffusers":
            return change
        return change.restated("base", base) if base is not None else change
    low = low_rank.to_lora(change, base, rank)
    return low.with_kernel(_kernel(weights, module)) if len(low.shape) == 2 else low


def _kernel(weights: BaseWeights | None, module: str) -> tuple[int, ...]:
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


def _export_embedding(source: LoadedAdapter, known: str, consumer: str, out: Path) -> list[ExportedFile]:
    """A file for the new word, if there is one, that every program of the family reads."""
    if not source.words:
        return []
    folder = out.parent if out.suffix == ".safetensors" else out
    target = folder / f"{source.facts['embedding']['token']}.safetensors"
    tensors = textual_inversion.to_embedding_file(source.words)
    if target.exists() and not _equal(storage.read_safetensors(target), tensors):
        raise ConfigError(
            "another word's file has this name, so it is kept", where=str(target), remedy="give another --out"
        )
    storage.write_safetensors(target, tensors)
    readers = tuple(consumers.loader_rules(known)) if consumer == "all" else (consumer,)
    return [ExportedFile(target, readers, "embedding", len(tensors), 0.0)]


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _check_target(out: Path, plans: list[ExportPlan], adapter: Path) -> None:
    if out.suffix == ".safetensors" and len(plans) > 1:
        names = "; ".join(f"{plan.layout} for {', '.join(plan.consumers)}" for plan in plans)
        raise ConfigError(
            f"no one file serves all: {names}", where=str(adapter), remedy="give a folder, or one consumer"
        )


def _target(adapter: Path, out: Path, plan: ExportPlan) -> Path:
    target = out if out.suffix == ".safetensors" else out / f"{adapter.stem}-{plan.suffix}.safetensors"
    verify.require_overwritable(target, adapter)
    return target
