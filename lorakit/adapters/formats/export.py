"""Export an adapter: as few files as all its consumers need, or one file in a layout."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lorakit.adapters import textual_inversion
from lorakit.adapters.formats import consumers, experts, layouts, low_rank, verify
from lorakit.adapters.formats.base_weights import BaseWeights
from lorakit.adapters.formats.delta_weights import DeltaWeight, DoraDelta, LoraDelta
from lorakit.adapters.formats.native_names import NativeModule, is_modulation_swapped, native_module
from lorakit.adapters.formats.read import LoadedAdapter, read_adapter_file
from lorakit.adapters.formats.strength import with_strength
from lorakit.adapters.formats.verify import ExportedFile, ExportPlan, WriteOptions, base_weight_for
from lorakit.core import output_paths, storage
from lorakit.core.errors import ConfigError, NumericError
from lorakit.models import families

CONSUMERS = consumers.CONSUMERS
_CONVOLUTION = re.compile(r"^unet\..*(conv|proj_in|proj_out)")


@dataclass(frozen=True)
class _Conversion:
    """The settings by which deltas are converted: family, base model's weights, rank limit."""

    family: str
    base_weights: BaseWeights | None
    max_rank: int | None = None


def export_adapter(
    path: Path,
    consumer: str,
    out: Path,
    *,
    base: Path | None = None,
    allow_untrained: bool = False,
    family: str | None = None,
    max_rank: int | None = None,
    include_names: bool = False,
    dtype: str = "fp16",
    allow_loss: bool = False,
    strength: float = 1.0,
    apply_strength: bool = False,
) -> list[ExportedFile]:
    """Read the adapter at `path` and write it as `export_loaded_adapter` does.

    `family` names the model family if the file does not. `strength` is recorded in the metadata, or with
    `apply_strength` multiplied into the weights; ConfigError if that is not exact.
    """
    _check_request(consumer, out)
    adapter = read_adapter_file(path, family, allow_embedding_only=True)
    return export_loaded_adapter(
        with_strength(adapter, strength, apply=apply_strength),
        consumer,
        out,
        base=base,
        allow_untrained=allow_untrained,
        max_rank=max_rank,
        include_names=include_names,
        dtype=dtype,
        allow_loss=allow_loss,
    )


def export_loaded_adapter(
    adapter: LoadedAdapter,
    consumer: str,
    out: Path,
    *,
    base: Path | None = None,
    allow_untrained: bool = False,
    max_rank: int | None = None,
    include_names: bool = False,
    dtype: str = "fp16",
    allow_loss: bool = False,
) -> list[ExportedFile]:
    """Write an adapter for a consumer ("comfyui", "a1111", "diffusers") or for "all" that can read it.

    `out` is a folder, or the .safetensors file to write; the vectors of a new token get a file of their own
    beside it. With `base`, the base model's folder, modules and shapes are compared with the model; DoRA for
    ComfyUI and A1111, and OFT, need it. A method that a consumer does not support becomes the nearest LoRA of
    at most `max_rank`; the result has the error. `allow_untrained` accepts an adapter without effect;
    `include_names` writes the names of the file and of the base model into the metadata. `dtype` is the
    number type of the factors (fp16, bf16 or fp32); `allow_loss` accepts a nearest LoRA that loses more
    than 10 % of a delta weight.
    Raises ConfigError if a consumer cannot read the adapter, NumericError if it has no effect.
    """
    _check_request(consumer, out)
    family = require_family(adapter)
    if not adapter.deltas:
        return _export_embedding(adapter, family, consumer, out)
    if not allow_untrained:
        _require_trained(adapter)
    parts = []
    for expert in experts.split_experts(adapter):
        aliases = {experts.HIGH_NOISE: expert.component}
        base_weights = None if base is None else BaseWeights(base, aliases)
        if base is not None:
            _check_base(expert.adapter, family, base)
        plans = _plans_for_consumer(expert.adapter, consumer, _Conversion(family, base_weights, max_rank))
        for plan in plans:
            suffix = "-".join(filter(None, (expert.suffix, plan.suffix)))
            parts.append((expert.adapter, replace(plan, suffix=suffix), base_weights))
    _check_one_target(out, [plan for _, plan, _ in parts], adapter)
    if adapter.embeddings:
        _check_token_file(adapter, out)
    exported = [
        verify.write_verified(
            part,
            family,
            plan,
            _target(adapter, out, plan),
            WriteOptions(base_weights, base, include_names, dtype, allow_loss),
        )
        for part, plan, base_weights in parts
    ]
    return exported + _export_embedding(adapter, family, consumer, out)


def save_adapter(
    adapter: LoadedAdapter,
    path: Path,
    layout: str = "diffusers",
    *,
    base: Path | None = None,
    sources: Sequence[Path] = (),
    dtype: str = "fp32",
    allow_loss: bool = False,
    max_rank: int | None = None,
) -> ExportedFile:
    """Write an adapter as one file in a layout ("diffusers", "kohya" or "native"), verified like an export.

    `base`, the base model's folder, is needed for DoRA and OFT; `dtype` is the number type of the factors,
    and `allow_loss` accepts a nearest LoRA, of at most `max_rank`, that loses more than 10 %. `sources` are
    further files that must not be replaced. The vectors of a new token get a file of their own beside it,
    named after the token. Raises ConfigError for an unknown layout or family, and for a file that must not
    be replaced.
    """
    output_paths.check_output_path(path, "out")
    if layout not in layouts.WRITERS:
        raise ConfigError(f"unknown layout {layout!r}", remedy=f"known: {', '.join(layouts.WRITERS)}")
    if path.suffix != ".safetensors":
        raise ConfigError("the output must be a .safetensors file", where=f"out: {path}")
    family = require_family(adapter)
    if not adapter.deltas:
        raise ConfigError(
            "this file contains the vectors of a new token and no adapter",
            where=_source_name(adapter),
            remedy="`lorakit export` writes them as a file that other programs read",
        )
    verify.require_overwritable(path, *sources, *([adapter.path] if adapter.path else []))
    base_weights = BaseWeights(base) if base else None
    plan = ExportPlan((), layout, "", convert_deltas(adapter, family, layout, base_weights, max_rank))
    tokens = _export_embedding(adapter, family, "all", path)  # first: it may be refused
    options = WriteOptions(base_weights, dtype=dtype, allow_loss=allow_loss)
    written = verify.write_verified(adapter, family, plan, path, options)
    return replace(written, token_file=tokens[0].path if tokens else None)


def _check_request(consumer: str, out: Path) -> None:
    output_paths.check_output_path(out, "out")
    if consumer not in (*CONSUMERS, "all"):
        raise ConfigError(f"unknown consumer {consumer!r}", remedy=f"known: {', '.join(CONSUMERS)}, all")


def _source_name(adapter: LoadedAdapter) -> str:
    return str(adapter.path) if adapter.path else "adapter"


def _plans_for_consumer(adapter: LoadedAdapter, consumer: str, conversion: _Conversion) -> list[ExportPlan]:
    """Return the files of one network for a consumer, or for all that read it."""
    family = conversion.family
    supporting = consumers.supporting_consumers(family, adapter.deltas)
    if not supporting or consumer not in (*supporting, "all"):
        missing = consumer if consumer != "all" else next(iter(consumers.loader_rules(family)))
        raise consumers.unsupported_error(family, missing, adapter.deltas, _source_name(adapter))
    if consumer == "all":
        return _group_plans(adapter, supporting, conversion)
    ordered = (consumer, *(name for name in supporting if name != consumer))  # the requested one first
    return _group_plans(adapter, ordered, conversion)[:1]


def require_family(adapter: LoadedAdapter) -> str:
    """Return the adapter's family; ConfigError that names the candidates if it is not certain."""
    if adapter.family is not None:
        return adapter.family
    candidates = ", ".join(adapter.possible_families)
    raise ConfigError(
        "the file does not name its model family: "
        + (f"it could be {candidates}" if candidates else "its keys fit none"),
        where=_source_name(adapter),
        remedy="give --family NAME",
    )


def _require_trained(adapter: LoadedAdapter) -> None:
    if not any(_has_effect(delta) for delta in adapter.deltas.values()):
        raise NumericError(
            "the adapter has no effect: all of its weights are zero",
            where=_source_name(adapter),
            remedy="train it first, or allow it with --allow-untrained",
        )


def _has_effect(delta: DeltaWeight) -> bool:
    return delta.needs_base or all(bool(tensor.any()) for tensor in delta.stored_tensors())


def _check_base(adapter: LoadedAdapter, family_name: str, base: Path) -> None:
    """Raise ConfigError unless the base model has the adapter's modules, with the same shapes."""
    family = families.family_for_adapter(base, family_name)
    if family.name != family_name:
        raise ConfigError(
            f"a {family_name} adapter does not fit a {family.name} model",
            where=str(base),
            remedy="give the base model that it was trained on",
        )
    shapes = families.weight_shapes(base, family.components.denoiser)
    widened = (
        set(family.target_modules) - {*families.ATTENTION_TARGETS}
        if family.conditioning.converts_pipelines
        else set()
    )
    wrong = [
        module
        for module, delta in adapter.component_deltas(family.components.denoiser).items()
        if module not in shapes or not (module in widened or _shapes_match(delta.shape, shapes[module]))
    ]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} modules do not fit the base model, first {', '.join(wrong[:5])}",
            where=_source_name(adapter),
            remedy="give the base model that it was trained on",
        )


def _shapes_match(delta: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Compare the outputs and the number of elements: some methods flatten convolutions, OFT has one axis."""
    if 0 in delta:
        return all(
            delta_size in (0, weight_size) for delta_size, weight_size in zip(delta, weight, strict=False)
        )
    return delta[0] == weight[0] and math.prod(delta) == math.prod(weight)


def _group_plans(
    adapter: LoadedAdapter, requested: tuple[str, ...], conversion: _Conversion
) -> list[ExportPlan]:
    """Return as few files as serve all requested consumers: one for each layout and numeric convention."""
    family, modules = conversion.family, list(adapter.deltas)
    only_lora = all(isinstance(delta, LoraDelta) for delta in adapter.deltas.values())
    has_dora = any(isinstance(delta, DoraDelta) for delta in adapter.deltas.values())
    groups: dict[tuple[str, str], list[str]] = {}
    for consumer in requested:
        convention = "" if only_lora else "diffusers" if consumer == "diffusers" else "webui"
        if has_dora and consumers.divides_by_input_norm(family, consumer):
            convention = consumer
        # diffusers drops the magnitudes of kohya's layout, and reads them in its own layout for every family
        is_diffusers = convention == "diffusers"
        layout = convention if is_diffusers else consumers.layout_for(family, consumer, modules)
        assert layout is not None, "only consumers that read all modules are exported for"
        groups.setdefault((layout, convention), []).append(consumer)
    plans = []
    for (layout, convention), group in groups.items():
        ordered = tuple(sorted(group, key=CONSUMERS.index))
        deltas = {
            module: _convert_delta(module, delta, group[0], layout, conversion)
            for module, delta in adapter.deltas.items()
        }
        plans.append(ExportPlan(ordered, layout, "-".join(ordered) if convention else layout, deltas))
    return plans


def convert_deltas(
    adapter: LoadedAdapter,
    family: str,
    layout: str,
    base_weights: BaseWeights | None,
    max_rank: int | None = None,
) -> dict[str, DeltaWeight]:
    """Return all deltas as a layout stores them, for the programs that read this layout."""
    consumer = "diffusers" if layout == "diffusers" else "comfyui"
    conversion = _Conversion(family, base_weights, max_rank)
    return {
        module: _convert_delta(module, delta, consumer, layout, conversion)
        for module, delta in adapter.deltas.items()
    }


def _convert_delta(
    module: str, delta: DeltaWeight, consumer: str, layout: str, conversion: _Conversion
) -> DeltaWeight:
    """Return a delta with the method and the numeric convention that a consumer reads."""
    if isinstance(delta, LoraDelta):
        return delta
    family, base_weights = conversion.family, conversion.base_weights
    native = native_module(family, module.split(".", 1)[1]) or NativeModule(module, [module])
    is_fused = layout in ("native", "kohya") and len(native.members) > 1
    base = base_weight_for(base_weights, module, delta)
    # With diffusers' names ComfyUI and Forge swap the halves of a modulation's delta, not of its magnitudes.
    is_renamed = layout == "diffusers" and consumer != "diffusers"
    swaps_only_delta = (
        is_renamed and isinstance(delta, DoraDelta) and is_modulation_swapped(native.name, module, delta)
    )
    if layouts.is_supported_method(delta, family, consumer) and not is_fused and not swaps_only_delta:
        if not isinstance(delta, DoraDelta) or consumer == "diffusers":
            return delta
        return delta.with_norm_of("base", base) if base is not None else delta
    lora = low_rank.to_lora(delta, base, conversion.max_rank)
    return lora.reshape_to_conv(_kernel(base_weights, module)) if len(lora.shape) == 2 else lora


def _kernel(base_weights: BaseWeights | None, module: str) -> tuple[int, ...]:
    """Return the kernel size of a module: LoHa and LoKr flatten convolutions, so their delta has none."""
    if base_weights is not None:
        return tuple(base_weights.read_weight(module).shape[2:])
    if not _CONVOLUTION.search(module):
        return ()
    raise ConfigError(
        "the delta of a convolution is stored flat, so its kernel size is unknown",
        where=module,
        remedy="give --base FOLDER, the base model that the adapter was trained on",
    )


def _export_embedding(adapter: LoadedAdapter, family: str, consumer: str, out: Path) -> list[ExportedFile]:
    """Write the vectors of a new token, if there is one, as a file that every program of the family reads."""
    if not adapter.embeddings:
        return []
    target = _check_token_file(adapter, out)
    tensors = textual_inversion.to_embedding_file(adapter.embeddings)
    storage.write_safetensors(target, tensors)
    readers = tuple(consumers.loader_rules(family)) if consumer == "all" else (consumer,)
    return [ExportedFile(target, readers, "textual_inversion", len(tensors), 0.0)]


def _check_token_file(adapter: LoadedAdapter, out: Path) -> Path:
    """Return the file for the vectors of the new token; ConfigError if it would replace another file."""
    folder = out.parent if out.suffix == ".safetensors" else out
    target = folder / f"{adapter.token}.safetensors"
    if adapter.deltas and target.resolve() == out.resolve():
        raise ConfigError(
            "the file of the new token would have the same name as that of the adapter",
            where=str(target),
            remedy=f"choose another name than {target.name}",
        )
    tensors = textual_inversion.to_embedding_file(adapter.embeddings)
    if target.exists() and not _equal(storage.read_safetensors(target), tensors):
        raise ConfigError(
            "the file of another token has this name, so it is not replaced",
            where=str(target),
            remedy="choose another folder",
        )
    return target


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _check_one_target(out: Path, plans: list[ExportPlan], adapter: LoadedAdapter) -> None:
    if out.suffix == ".safetensors" and len(plans) > 1:
        names = "; ".join(f"{plan.layout} for {', '.join(plan.consumers)}" for plan in plans)
        raise ConfigError(
            f"one file cannot serve all consumers: {names}",
            where=_source_name(adapter),
            remedy="give a folder, or one consumer",
        )


def _target(adapter: LoadedAdapter, out: Path, plan: ExportPlan) -> Path:
    if out.suffix == ".safetensors":
        target = out
    else:
        source = adapter.path or Path("adapter.safetensors")
        stem = source.stem if source.suffix == ".safetensors" else source.name
        target = out / f"{stem}-{plan.suffix}.safetensors"
    verify.require_overwritable(target, *([adapter.path] if adapter.path else []))
    return target
