"""Metadata of an exported file: an allow-list of keys, and the same bytes for the same adapter.

ModelSpec 1.0.1 (https://github.com/Stability-AI/ModelSpec) and the `ss_` keys that user interfaces show. It
has no dates (equal adapters give equal files), and no paths, captions or tag counts, which are private; the
names of the file and of the base model only on request.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from lorakit.adapters.files import METADATA_KEY
from lorakit.adapters.formats.delta_weights import (
    DeltaWeight,
    DoraDelta,
    most_common_method,
    most_common_rank,
)
from lorakit.core import checksums, safetensors_header, storage
from lorakit.core.errors import ConfigError
from lorakit.core.secret_text import mask_secrets
from lorakit.models import families

if TYPE_CHECKING:
    import torch

    from lorakit.adapters.formats.read import LoadedAdapter

_KEPT_KEYS = (
    "pipeline",
    "base_hash",
    "prediction_type",
    "expert",
    "resolution",
    "trigger",
    "step",
    "strength",
    "applied_strength",
    "recipe_hash",
)
THUMBNAIL_KEY, PUBLIC_BASE_KEY = "modelspec.thumbnail", "lorakit.base"
"""Keys of `with_public_details`: a data URI, and the public name of the base model."""
_MAX_HEADER_BYTES = 1 << 20  # that ComfyUI reads
_BYTES_PER_TENSOR = 120  # of its entry in a header, beside its name
_IMPLEMENTATION = "https://github.com/huggingface/diffusers"

# Architecture by family, and published models that differ in the number of inputs of a module.
_DEFAULT_ARCHITECTURE = {
    "sd15": "stable-diffusion-v1",
    "sd3": "stable-diffusion-3",
    "sdxl": "stable-diffusion-xl-v1-base",
}
_DEFAULT_ARCHITECTURE |= {"flux1": "flux-1-dev", "flux2": "flux-2"}
_WIDTHS: dict[str, tuple[str, dict[int, str]]] = {
    "sd15": ("attn2.to_k", {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2"}),
    "sd3": ("attn.to_q", {1536: "stable-diffusion-3-medium", 2432: "stable-diffusion-3.5-large"}),
    "flux2": ("attn.to_q", {6144: "flux-2-dev", 3072: "flux-2-klein-4b", 4096: "flux-2-klein-9b"}),
}
_BASE_VERSIONS: dict[str, dict[str, str]] = {  # by prefix of the architecture
    "stable-diffusion-v1": {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    "stable-diffusion-v2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "stable-diffusion-xl": {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
    "stable-diffusion-3": {"ss_base_model_version": "sd3"},
    "flux-1": {"ss_base_model_version": "flux1"},
    "flux-2": {"ss_base_model_version": "flux2"},
}
_NETWORK_MODULES = {"lora": "networks.lora", "dora": "networks.lora"}


@dataclass(frozen=True)
class MethodSummary:
    """Method and rank of most modules, and the alpha that the file contains."""

    method: str
    rank: int
    alpha: float


def with_public_details(
    adapter: LoadedAdapter, *, thumbnail: bytes | None = None, base: str | None = None
) -> LoadedAdapter:
    """Return an adapter whose exports show a thumbnail (JPEG) and name the base model, which is public."""
    details = {}
    if thumbnail:
        details[THUMBNAIL_KEY] = f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode('ascii')}"
    if base:
        details[PUBLIC_BASE_KEY] = base
    return replace(adapter, metadata={**adapter.metadata, **details})


def build_metadata(
    adapter: LoadedAdapter,
    family: str,
    deltas: Mapping[str, DeltaWeight],
    tensors: Mapping[str, torch.Tensor],
    base: Path | None = None,
    output_name: str | None = None,
) -> dict[str, str]:
    """Return the metadata of a file whose `tensors` store `deltas`.

    `base`, the base model's folder, adds the prediction type; `output_name` adds the private names of the
    file and of the base model.
    """
    summary = _method_summary(deltas, tensors)
    own: dict[str, Any] = {
        key: adapter.lorakit_metadata[key] for key in _KEPT_KEYS if key in adapter.lorakit_metadata
    }
    own |= {"type": summary.method, "family": family, "rank": summary.rank, "alpha": summary.alpha}
    if any(isinstance(delta, DoraDelta) and delta.norm_of == "base" for delta in deltas.values()):
        own["dora_magnitude_norm"] = "base"
    architecture = _architecture(family, deltas)
    entries = {
        "format": "pt",
        METADATA_KEY: json.dumps(own, sort_keys=True, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": f"{_title(family)} LoRA",
        "modelspec.hash_sha256": f"0x{_tensor_hash(tensors)}",
        "ss_network_module": _NETWORK_MODULES.get(summary.method, "lycoris.kohya"),
        "ss_network_dim": str(summary.rank),
        "ss_network_alpha": f"{summary.alpha:g}",
    }
    for prefix, versions in _BASE_VERSIONS.items():
        if architecture.startswith(prefix):
            entries |= versions
    entries |= _training_entries(own)
    if base_name := adapter.metadata.get(PUBLIC_BASE_KEY):
        entries["ss_sd_model_name"] = base_name
    if (
        base is not None
        and (base / "scheduler" / "scheduler_config.json").is_file()
        and _is_ddpm_family(family)
    ):
        entries["modelspec.prediction_type"] = _prediction_type(base)
    if output_name is not None:
        entries["ss_output_name"] = output_name
        if isinstance(base_name := adapter.lorakit_metadata.get("base"), str):
            entries["ss_sd_model_name"] = PureWindowsPath(base_name).name
    masked = {key: mask_secrets(text) for key, text in entries.items()}
    thumbnail = adapter.metadata.get(THUMBNAIL_KEY, "")
    is_shown = thumbnail.startswith("data:image/") and _fits_header(tensors, masked, thumbnail)
    return masked | ({THUMBNAIL_KEY: thumbnail} if is_shown else {})


def _training_entries(own: Mapping[str, Any]) -> dict[str, str]:
    """Return what user interfaces show of a training: resolution, steps, trigger words, the use."""
    entries, hints = dict[str, str](), []
    if isinstance(resolution := own.get("resolution"), int):
        entries["modelspec.resolution"] = f"{resolution}x{resolution}"
        entries["ss_resolution"] = f"({resolution}, {resolution})"
    if isinstance(step := own.get("step"), int):
        entries["ss_steps"] = str(step)
    if isinstance(trigger := own.get("trigger"), str) and trigger:
        entries["modelspec.trigger_phrase"] = trigger
        hints.append(f"Write {trigger} in the prompt.")
    if isinstance(strength := own.get("strength"), float):
        hints.append(f"Use at strength {strength:g}.")
    return entries | ({"modelspec.usage_hint": " ".join(hints)} if hints else {})


def _fits_header(tensors: Mapping[str, torch.Tensor], entries: Mapping[str, str], thumbnail: str) -> bool:
    """Return True if a header with this thumbnail stays below the size that ComfyUI reads."""
    names = sum(len(name.encode()) + _BYTES_PER_TENSOR for name in tensors)
    texts = sum(len(key.encode()) + len(json.dumps(text)) + 8 for key, text in entries.items())
    return names + texts + len(thumbnail) < _MAX_HEADER_BYTES


def _method_summary(deltas: Mapping[str, DeltaWeight], tensors: Mapping[str, torch.Tensor]) -> MethodSummary:
    rank = max(1, most_common_rank(deltas))
    # With the scale multiplied in, the file's alpha is its rank; any other would be applied a second time.
    file_alpha = next((float(tensors[key]) for key in sorted(tensors) if key.endswith(".alpha")), float(rank))
    return MethodSummary(most_common_method(deltas), rank, file_alpha)


def _architecture(family: str, deltas: Mapping[str, DeltaWeight]) -> str:
    ending, widths = _WIDTHS.get(family, ("\0", {}))
    inputs = [delta.shape[1] for module, delta in deltas.items() if module.endswith(ending)]
    name = widths.get(inputs[0] if inputs else 0, _DEFAULT_ARCHITECTURE.get(family, family))
    if name == "stable-diffusion-3-medium" and any(".attn2." in module for module in deltas):
        return "stable-diffusion-3.5-medium"  # as wide as 3 medium, with a second attention
    return name


def _title(family: str) -> str:
    try:
        return families.get_family(family).title
    except ConfigError:  # a family derived from a pipeline is not in the table
        return family


def _is_ddpm_family(family: str) -> bool:
    try:
        return families.get_family(family).objective == "ddpm"
    except ConfigError:
        return False


def _tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the bytes after the header, as ModelSpec defines it."""
    data = safetensors_header.safetensors_bytes(tensors)
    return checksums.sha256_bytes(data[8 + int.from_bytes(data[:8], "little") :])


def _prediction_type(base: Path) -> str:
    config: dict[str, Any] = storage.read_json(
        base / "scheduler" / "scheduler_config.json", allow_infinity=True
    )
    return "v" if config.get("prediction_type") == "v_prediction" else "epsilon"
