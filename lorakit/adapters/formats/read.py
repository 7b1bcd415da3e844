"""Read an adapter file of any origin into delta weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters.files import METADATA_KEY, parse_adapter_metadata
from lorakit.adapters.formats import delta_weights, detect_family, key_suffixes, module_names, native_names
from lorakit.adapters.formats.delta_weights import DeltaWeight, DoraDelta, OftDelta
from lorakit.adapters.formats.key_repair import repair_keys
from lorakit.adapters.formats.unreadable_kinds import refuse_unreadable_kinds, without_biases_and_norms
from lorakit.adapters.textual_inversion import is_embedding_key
from lorakit.core import safetensors_header, storage
from lorakit.core.errors import ConfigError, DataError, NumericError, first_line
from lorakit.core.path_kind import it_is
from lorakit.core.strict_json import parse_json

PEFT_METADATA_KEY = "lora_adapter_metadata"
"""Metadata key under which diffusers stores peft's configuration."""
ADAPTER_FILE_NAMES = (
    "adapter.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)
"""Names of adapter files in a run folder, and in folders of peft and diffusers."""
ScaleForModule = Callable[[str, int], float]
"""(module, rank) -> scale."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in memory: delta weights by `<component>.<module>` in diffusers' names.

    The names do not depend on the layout of the file it was read from.
    """

    deltas: dict[str, DeltaWeight]
    layout: str
    lorakit_metadata: dict[str, Any] = field(default_factory=dict)
    """Metadata that lorakit wrote: family, rank, alpha, trigger, ..."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The whole metadata of the file."""
    possible_families: tuple[str, ...] = ()
    """Model families it can belong to, the likeliest first; one where the file names it."""
    embeddings: dict[str, torch.Tensor] = field(default_factory=dict)
    """Vectors (num_vectors, width) of a new token by text encoder, where lorakit trained one with the
    adapter; `lorakit_metadata["textual_inversion"]` names the token."""
    nonfinite_tensors: tuple[str, ...] = ()
    """Keys of the file's tensors with NaN or infinity; only an adapter read to be inspected has any."""
    notes: tuple[str, ...] = ()
    """Repairs of damaged keys, one sentence for each kind of damage."""
    path: Path | None = None
    """The file or folder it was read from; None for an adapter that was computed."""

    @property
    def family(self) -> str | None:
        """The name of the model family; None if several are possible."""
        return self.possible_families[0] if len(self.possible_families) == 1 else None

    @property
    def method(self) -> str:
        """The method of most modules, such as `lora` or `dora`; `none` if no module is adapted."""
        return delta_weights.most_common_method(self.deltas)

    @property
    def rank(self) -> int:
        """The rank of most modules; 0 for methods without a rank."""
        return delta_weights.most_common_rank(self.deltas)

    @property
    def num_parameters(self) -> int:
        """The number of elements of all stored tensors, without the vectors of a new token."""
        return sum(tensor.numel() for delta in self.deltas.values() for tensor in delta.stored_tensors())

    @property
    def components(self) -> list[str]:
        """The adapted networks, such as `unet` and `text_encoder`."""
        return module_names.component_names(self.deltas)

    @property
    def token(self) -> str | None:
        """The new token whose vectors the file holds, if any."""
        return str(self.lorakit_metadata["textual_inversion"]["token"]) if self.embeddings else None

    def component_deltas(self, component: str) -> dict[str, DeltaWeight]:
        """Return the delta weights of one network, by its module names."""
        prefix = f"{component}."
        return {m.removeprefix(prefix): delta for m, delta in self.deltas.items() if m.startswith(prefix)}


@dataclass(frozen=True)
class _PeftFolder:
    """A folder in peft's layout: the file of weights, and adapter_config.json where it exists."""

    weights_file: Path
    config: dict[str, Any] | None


def read_adapter_file(
    path: str | Path,
    family: str | None = None,
    *,
    allow_nonfinite: bool = False,
    allow_embedding_only: bool = False,
    skip_biases_and_norms: bool = False,
) -> LoadedAdapter:
    """Read an adapter file, or a folder as peft or a run writes it; no code in it is executed.

    `family` names the model family; without it the family is read from metadata, keys and shapes.
    `allow_nonfinite` accepts NaN and infinity, for inspection; `allow_embedding_only` accepts a file with the
    vectors of a new token and no adapter; `skip_biases_and_norms` leaves out the changes of these, with a
    note, for inspection.
    Raises ConfigError for a path without an adapter, DataError for a damaged file, an unknown key or factors
    that do not fit together, and NumericError for NaN or infinity.
    """
    source = Path(path)
    folder = _find_in_folder(source) if source.is_dir() else _PeftFolder(source, None)
    file = folder.weights_file
    if not file.is_file():
        raise ConfigError("there is no such adapter", where=str(file), remedy="give an adapter file")
    metadata = storage.read_safetensors_metadata(file)
    tensors = storage.read_safetensors(file)
    nonfinite = _nonfinite_keys(tensors)
    if not allow_nonfinite:
        require_finite(nonfinite, str(file))
    if allow_embedding_only and METADATA_KEY in metadata and all(map(is_embedding_key, tensors)):
        own = _read_lorakit_metadata(metadata, str(file))
        return LoadedAdapter(
            {},
            detect_layout(tensors),
            own,
            metadata,
            (own["family"],),
            _embedding_tensors(tensors),
            path=source,
        )
    notes: tuple[str, ...] = ()
    if skip_biases_and_norms:
        tensors, notes = without_biases_and_norms(tensors)
    adapter = _build_adapter(tensors, metadata, str(file), family, folder.config)
    return replace(adapter, nonfinite_tensors=nonfinite, path=source, notes=adapter.notes + notes)


def parse_adapter(data: bytes, where: str, family: str | None = None) -> LoadedAdapter:
    """Read an adapter from the bytes of a file; `where` names it in errors."""
    from safetensors.torch import load as load_bytes

    metadata = safetensors_header.parse_header(data, where).metadata
    tensors = load_bytes(data)
    require_finite(_nonfinite_keys(tensors), where)
    return _build_adapter(tensors, metadata, where, family, None)


def require_finite(nonfinite: Sequence[str], where: str) -> None:
    """Raise NumericError if there are tensors with NaN or infinity; it names the first."""
    if nonfinite:
        others = f", and {len(nonfinite) - 1} more tensors" if len(nonfinite) > 1 else ""
        raise NumericError(
            "the adapter contains NaN or infinity",
            where=f"{where}, {nonfinite[0][:200]}{others}",
            remedy="use an earlier checkpoint of its training; a lower strength does not help",
        )


def _nonfinite_keys(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    return tuple(key for key in sorted(tensors) if not _is_finite(tensors[key]))


def _is_finite(tensor: torch.Tensor) -> bool:
    """Check the minimum and maximum, to which NaN spreads: 40 times faster than checking each element."""
    if not tensor.is_floating_point() or not tensor.numel():
        return bool(tensor.isfinite().all())
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # aminmax does not support 8-bit floats
    return all(math.isfinite(value) for value in torch.aminmax(wide))


def find_adapter_file(path: Path) -> Path:
    """Return the file of weights of an adapter file or folder; ConfigError if there is none."""
    file = _find_in_folder(path).weights_file if path.is_dir() else path
    if not file.is_file():
        raise ConfigError("there is no such adapter", where=str(file), remedy="give an adapter file")
    return file


def _find_in_folder(folder: Path) -> _PeftFolder:
    for name in ADAPTER_FILE_NAMES:
        if (folder / name).is_file():
            return _PeftFolder(folder / name, _read_peft_config(folder / "adapter_config.json"))
    raise ConfigError(
        f"there is no adapter in this folder{it_is(folder)}",
        where=str(folder),
        remedy="give the .safetensors file itself, or the folder of a finished run",
    )


def _read_peft_config(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    config = storage.read_json(file, allow_infinity=True)
    if not isinstance(config, dict):
        raise DataError("the peft configuration is not an object", where=str(file), remedy="restore the file")
    return config


def _build_adapter(
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    where: str,
    family: str | None,
    config: dict[str, Any] | None,
) -> LoadedAdapter:
    embeddings = _embedding_tensors(tensors) if METADATA_KEY in metadata else {}
    if embeddings:
        tensors = {key: tensor for key, tensor in tensors.items() if not is_embedding_key(key)}
        if not tensors:
            raise ConfigError(
                "this file contains the vectors of a new token and no adapter",
                where=where,
                remedy="`lorakit export` writes them as a file that other programs read",
            )
    refuse_unreadable_kinds(tensors, where)
    repaired = repair_keys(tensors, where)
    tensors = repaired.tensors
    if not key_suffixes.looks_like_adapter(tensors):
        raise DataError(
            f"unknown adapter layout; its first keys are {', '.join(sorted(tensors)[:3])}",
            where=where,
            remedy="lorakit reads its own layout and those of diffusers, peft, kohya, ComfyUI and LyCORIS",
        )
    own = _read_lorakit_metadata(metadata, where)
    parts = key_suffixes.group_by_module(tensors, where)
    families = (family,) if family else _possible_families(own, metadata, parts)
    has_alpha = any("alpha" in part for part in parts.values())
    scaling = _unit_scale if has_alpha else _scale_lookup(own, metadata, config, where)
    transpose_kernels = _is_onetrainer_oft(tensors, metadata)
    deltas: dict[str, DeltaWeight] = {}
    for stem in sorted(parts):
        modules = module_names.resolve_key(stem, families[0] if families else None)
        if modules is None:
            raise DataError(f"unknown key: {stem[:200]}", where=where)
        delta = key_suffixes.build_delta(parts[stem], partial(scaling, modules[0]), f"{where}, {stem}")
        delta = _apply_writer_conventions(delta, own, transpose_kernels)
        for module, part in native_names.split_fused(delta, modules, stem, f"{where}, {stem}").items():
            if module in deltas:
                raise DataError(f"the file has two deltas of {module}", where=where)
            deltas[module] = part
    deltas = dict(sorted(deltas.items()))
    if len(families) != 1:
        families = detect_family.narrow_by_shapes(families, deltas)
    layout = detect_layout(tensors)
    return LoadedAdapter(deltas, layout, own, metadata, families, embeddings, notes=repaired.notes)


def _embedding_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the vectors of a new token by text encoder."""
    return {key.split(".")[0]: tensor for key, tensor in tensors.items() if is_embedding_key(key)}


def _apply_writer_conventions(
    delta: DeltaWeight, own: Mapping[str, Any], transpose_kernels: bool
) -> DeltaWeight:
    """Apply the conventions that depend on the program that wrote the file, not on its tensors."""
    if isinstance(delta, DoraDelta) and own.get("dora_magnitude_norm") == "base":
        return replace(delta, norm_of="base")
    if isinstance(delta, OftDelta) and delta.side == "inputs":
        return replace(delta, transpose_kernels=transpose_kernels)
    return delta


def _is_onetrainer_oft(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bool:
    """Return True if OneTrainer wrote peft's OFT: only it writes it with kohya's or native names."""
    marked = any(key.startswith("ot_") for key in metadata) or any(k.endswith("scaled_oft") for k in tensors)
    return marked or detect_layout(tensors) in ("kohya", "native")


def _possible_families(
    own: dict[str, Any], metadata: dict[str, str], parts: Mapping[str, Any]
) -> tuple[str, ...]:
    if "family" in own:
        return (str(own["family"]),)
    return detect_family.family_from_metadata(metadata) or detect_family.families_from_tensors(parts)


def detect_layout(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the layout of a file by its keys: kohya, native, diffusers or peft."""
    keys = sorted(tensors)
    if any(key.startswith(("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")) for key in keys):
        return "kohya"
    if any(key.startswith(("diffusion_model.", "model.diffusion_model.")) for key in keys):
        return "native"
    if any(key.startswith(("unet.", "transformer.", "text_encoder")) for key in keys):
        return "diffusers"
    return "peft"


def _read_lorakit_metadata(metadata: dict[str, str], where: str) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        return {}
    own = parse_adapter_metadata(metadata[METADATA_KEY], where)
    if "family" not in own:
        raise DataError("the metadata of the adapter is damaged: it names no family", where=where)
    return own


def _unit_scale(module: str, rank: int) -> float:
    """Return 1: in a file with alphas, the scale of a module without one is multiplied into its factors."""
    return 1.0


def _scale_lookup(
    own: dict[str, Any], metadata: dict[str, str], config: dict[str, Any] | None, where: str
) -> ScaleForModule:
    """Return the scale of each module for a file without `alpha` keys.

    Where neither metadata nor configuration has an alpha, the scale is multiplied into the factors. rsLoRA
    (arXiv:2312.03732) divides by the square root of the rank.
    """
    if own:
        return partial(_lorakit_scale, own)
    if config is not None:
        return lambda module, rank: _peft_scale(config, module.split(".", 1)[1], rank)
    if PEFT_METADATA_KEY not in metadata:
        return _unit_scale
    try:
        peft_config = dict(parse_json(metadata[PEFT_METADATA_KEY], where))
    except (DataError, ValueError, TypeError) as error:
        message = f"the peft configuration in the metadata is damaged: {first_line(error)}"
        raise DataError(message, where=where) from error

    def module_scale(module: str, rank: int) -> float:
        component, name = module.split(".", 1)
        prefix = f"{component}."
        component_config = {k.removeprefix(prefix): v for k, v in peft_config.items() if k.startswith(prefix)}
        return _peft_scale(component_config or peft_config, name, rank)

    return module_scale


def _lorakit_scale(own: Mapping[str, Any], module: str, rank: int) -> float:
    """Return alpha / rank of a module by lorakit's metadata, which has the rank as well."""
    is_rslora = own.get("rslora", False) is True or own.get("type") == "rslora"
    module_rank = own.get("rank_pattern", {}).get(module, own["rank"])
    alpha = own.get("alpha_pattern", {}).get(module, own["alpha"])
    return float(alpha / (math.sqrt(module_rank) if is_rslora else module_rank))


def _peft_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return alpha / rank of a module by peft's configuration, whose patterns name the exceptions."""

    def value_of(key: str, default: Any) -> float:
        for pattern, value in (config.get(key) or {}).items():
            # never used as a regular expression: a hostile one could run forever
            ending = str(pattern).lstrip("^")
            if module == ending or module.endswith(f".{ending}"):
                return float(value)
        return float(default)

    try:
        module_rank = rank or value_of("rank_pattern", config.get("r", 1))
        alpha = value_of("alpha_pattern", config.get("lora_alpha", config.get("alpha", module_rank)))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise DataError("alpha and rank must be numbers", where=module) from error
    if not math.isfinite(alpha) or module_rank < 1:
        raise DataError("alpha and rank must be finite numbers", where=module)
    return alpha / (math.sqrt(module_rank) if config.get("use_rslora") else module_rank)
