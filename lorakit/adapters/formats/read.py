"""Read an adapter file of any origin as changes of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.formats import detect_family, key_suffixes, module_names, native_names
from lorakit.adapters.formats.delta_weights import DeltaWeight, DoraDelta, OftDelta
from lorakit.adapters.textual_inversion import is_embedding_key
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, NumericError

LORAKIT_KEY = "lorakit"
"""Metadata key under which lorakit keeps what it knows about an adapter, as JSON."""
PEFT_KEY = "lora_adapter_metadata"
"""Metadata key under which diffusers keeps peft's configuration."""


@dataclass(frozen=True)
class LoadedAdapter:
    """Changes by `<component>.<module>` in diffusers' names, whatever layout the file had."""

    changes: dict[str, DeltaWeight]
    layout: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What lorakit recorded: family, rank, alpha, trigger, ..."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The file's whole metadata."""
    families: tuple[str, ...] = ()
    """The families it can belong to, likeliest first; one where the file records it."""
    words: dict[str, torch.Tensor] = field(default_factory=dict)
    """Vectors (tokens, width) of a new word by text encoder, where lorakit trained one with the adapter;
    `facts["embedding"]` says which word."""
    unsound: tuple[str, ...] = ()
    """The file's tensors that hold NaN or infinity; empty unless they were asked for."""

    @property
    def family(self) -> str | None:
        """The family's name, where it is certain."""
        return self.families[0] if len(self.families) == 1 else None

    @property
    def components(self) -> list[str]:
        """The networks that are changed, such as `unet` and `text_encoder`."""
        return module_names.component_names(self.changes)

    def of(self, component: str) -> dict[str, DeltaWeight]:
        """Changes of one network, by its module names."""
        start = f"{component}."
        return {m.removeprefix(start): c for m, c in self.changes.items() if m.startswith(start)}


def read_adapter_file(
    path: str | Path, family: str | None = None, *, unsound: bool = False, word_alone: bool = False
) -> LoadedAdapter:
    """Read an adapter file, or a folder as peft writes it; nothing of it is run.

    `family` names the model's family where the file does not; else it is read from the keys and shapes.
    `unsound` reads one with NaN or infinity too, to look at it; `word_alone` one that changes nothing and
    has a new word.
    Raises DataError for a damaged file, a key that is not understood, or halves that do not fit together,
    and NumericError for NaN or infinity.
    """
    file = Path(path)
    config = None
    if file.is_dir():
        file, config = _peft_folder(file)
    metadata = storage.read_safetensors_metadata(file)
    tensors = storage.read_safetensors(file)
    damaged = _non_finite_keys(tensors)
    if not unsound:
        require_finite(damaged, str(file))
    if word_alone and LORAKIT_KEY in metadata and all(map(is_embedding_key, tensors)):
        facts = _read_lorakit_metadata(metadata, str(file))
        return LoadedAdapter(
            {}, detect_layout(tensors), facts, metadata, (facts["family"],), _embedding_tensors(tensors)
        )
    return replace(_build_adapter(tensors, metadata, str(file), family, config), unsound=damaged)


def parse_adapter(data: bytes, where: str, family: str | None = None) -> LoadedAdapter:
    """Read an adapter from a file's bytes; `where` names it in errors."""
    from safetensors.torch import load as load_bytes

    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    tensors = load_bytes(data)
    require_finite(_non_finite_keys(tensors), where)
    return _build_adapter(tensors, metadata, where, family, None)


def require_finite(damaged: Sequence[str], where: str) -> None:
    """NumericError that names the first of the tensors with NaN or infinity, if there are any."""
    if damaged:
        more = f", and {len(damaged) - 1} tensors more" if len(damaged) > 1 else ""
        raise NumericError(
            "the adapter holds NaN or infinity",
            where=f"{where}, {damaged[0][:200]}{more}",
            remedy="take an earlier checkpoint of its training; no strength mends it",
        )


def _non_finite_keys(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    return tuple(key for key in sorted(tensors) if not _finite(tensors[key]))


def _finite(tensor: torch.Tensor) -> bool:
    """Told by the extremes, to which NaN spreads: forty times quicker than to look at each number."""
    if not tensor.is_floating_point() or not tensor.numel():
        return bool(tensor.isfinite().all())
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # 8-bit numbers have no extremes
    return all(math.isfinite(value) for value in torch.aminmax(wide))


def _peft_folder(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    for name in ("adapter.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
        if (folder / name).is_file():
            config = folder / "adapter_config.json"
            return folder / name, storage.read_json(config) if config.is_file() else None
    raise ConfigError(
        "no adapter in this folder", where=str(folder), remedy="give the .safetensors file itself"
    )


def _build_adapter(
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    where: str,
    family: str | None,
    config: dict[str, Any] | None,
) -> LoadedAdapter:
    words = _embedding_tensors(tensors) if LORAKIT_KEY in metadata else {}
    if words:
        tensors = {key: tensor for key, tensor in tensors.items() if not is_embedding_key(key)}
        if not tensors:
            raise ConfigError(
                "this file holds a new word and no adapter",
                where=where,
                remedy="`lorakit export` writes the word as the file that other programs read",
            )
    if not key_suffixes.looks_like_adapter(tensors):
        raise DataError(
            f"no layout of adapters that lorakit reads; its keys begin {', '.join(sorted(tensors)[:3])}",
            where=where,
            remedy="readable: lorakit's own, diffusers, peft, kohya, ComfyUI and LyCORIS",
        )
    facts = _read_lorakit_metadata(metadata, where)
    parts = key_suffixes.group_by_module(tensors, where)
    possible = (family,) if family else _families(facts, metadata, parts)
    stated = any("alpha" in part for part in parts.values())
    scaling = _unit_scale if stated else _scale_lookup(facts, metadata, config, where)
    backwards = _is_onetrainer_oft(tensors, metadata)
    changes: dict[str, DeltaWeight] = {}
    for stem in sorted(parts):
        modules = module_names.resolve_key(stem, possible[0] if possible else None)
        if modules is None:
            raise DataError(f"a key that is not understood: {stem[:200]}", where=where)
        change = key_suffixes.build_delta(parts[stem], partial(scaling, modules[0]), f"{where}, {stem}")
        change = _apply_writer_conventions(change, facts, backwards)
        for module, part in native_names.split_fused(change, modules, stem, f"{where}, {stem}").items():
            if module in changes:
                raise DataError(f"{module} is changed twice", where=where)
            changes[module] = part
    ordered = dict(sorted(changes.items()))
    if not possible or len(possible) > 1:
        possible = detect_family.narrow_by_shapes(possible, ordered)
    return LoadedAdapter(ordered, detect_layout(tensors), facts, metadata, possible, words)


def _embedding_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A new word's vectors by text encoder."""
    return {key.split(".")[0]: tensor for key, tensor in tensors.items() if is_embedding_key(key)}


def _apply_writer_conventions(change: DeltaWeight, facts: Mapping[str, Any], backwards: bool) -> DeltaWeight:
    """A change with what its numbers do not say, but who wrote them."""
    if isinstance(change, DoraDelta) and facts.get("magnitude_over") == "base":
        return replace(change, over="base")
    if isinstance(change, OftDelta) and change.side == "inputs":
        return replace(change, backwards=backwards)
    return change


def _is_onetrainer_oft(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether OneTrainer wrote peft's kind of OFT: only it writes it under kohya's or native names."""
    known = any(key.startswith("ot_") for key in metadata) or any(k.endswith("scaled_oft") for k in tensors)
    return known or detect_layout(tensors) in ("kohya", "native")


def _families(facts: dict[str, Any], metadata: dict[str, str], parts: Mapping[str, Any]) -> tuple[str, ...]:
    if "family" in facts:
        return (str(facts["family"]),)
    return detect_family.family_from_metadata(metadata) or detect_family.families_from_tensors(parts)


def detect_layout(tensors: Mapping[str, torch.Tensor]) -> str:
    """What the layout of a file is called, told by its keys: kohya, native, diffusers or peft."""
    keys = sorted(tensors)
    if any(key.startswith(("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")) for key in keys):
        return "kohya"
    if any(key.startswith(("diffusion_model.", "model.diffusion_model.")) for key in keys):
        return "native"
    return (
        "diffusers"
        if any(key.startswith(("unet.", "transformer.", "text_encoder")) for key in keys)
        else "peft"
    )


def _read_lorakit_metadata(metadata: dict[str, str], where: str) -> dict[str, Any]:
    if LORAKIT_KEY not in metadata:
        return {}
    try:
        facts = json.loads(metadata[LORAKIT_KEY])
        ranks = [facts["rank"], *dict(facts.get("ranks", {})).values()]
        alphas = [facts["alpha"], *dict(facts.get("alphas", {})).values()]
        sound = min(ranks) >= 1 and all(map(math.isfinite, alphas)) and isinstance(facts["family"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise DataError("the adapter's record of rank, alpha and family is damaged", where=where)
    return dict(facts)


def _unit_scale(module: str, rank: int) -> float:
    """In a file that states alphas, a module without one has it multiplied in."""
    return 1.0


def _scale_lookup(
    facts: dict[str, Any], metadata: dict[str, str], config: dict[str, Any] | None, where: str
) -> Callable[[str, int], float]:
    """(module, rank) -> scale for files whose layout has no `alpha` keys.

    Where nobody states an alpha it is multiplied in. rsLoRA (arXiv:2312.03732) divides by the root.
    """
    if facts:
        root = facts.get("rslora", False) is True or facts.get("type") == "rslora"
        ranks, alphas = facts.get("ranks", {}), facts.get("alphas", {})

        def own(module: str, rank: int) -> float:
            whole = ranks.get(module, facts["rank"])
            return float(alphas.get(module, facts["alpha"]) / (math.sqrt(whole) if root else whole))

        return own
    if config is not None:
        return lambda module, rank: _peft_scale(config, module.split(".", 1)[1], rank)
    if PEFT_KEY not in metadata:
        return _unit_scale
    try:
        told = dict(json.loads(metadata[PEFT_KEY]))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError("the adapter's record of peft's settings is damaged", where=where) from error

    def scale(module: str, rank: int) -> float:
        component, name = module.split(".", 1)
        own = {k.removeprefix(f"{component}."): v for k, v in told.items() if k.startswith(f"{component}.")}
        return _peft_scale(own or told, name, rank)

    return scale


def _peft_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank as peft's configuration states it for a module; patterns name the exceptions."""

    def stated(key: str, default: Any) -> float:
        for pattern, value in (config.get(key) or {}).items():
            ending = str(pattern).lstrip("^")  # never run as an expression: a hostile one takes forever
            if module == ending or module.endswith(f".{ending}"):
                return float(value)
        return float(default)

    whole = rank or stated("rank_pattern", config.get("r", 1))
    alpha = stated("alpha_pattern", config.get("lora_alpha", config.get("alpha", whole)))
    if not math.isfinite(alpha) or whole < 1:
        raise DataError("alpha and rank must be finite numbers", where=module)
    return alpha / (math.sqrt(whole) if config.get("use_rslora") else whole)
