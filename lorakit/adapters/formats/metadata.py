"""What an exported file says about itself: an allow-list, the same bytes for the same adapter.

https://github.com/Stability-AI/ModelSpec (1.0.1) and the `ss_` keys that user interfaces show. Left out:
dates (equal adapters give equal files), paths, captions and tag counts, which are the trainer's own business;
the names of file and base come only on request.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from lorakit.adapters.formats.delta_weights import DeltaWeight, DoraDelta
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import families

if TYPE_CHECKING:
    import torch

    from lorakit.adapters.formats.read import LoadedAdapter

_KEPT_KEYS = ("pipeline", "base_hash", "resolution", "trigger", "steps", "recipe_hash")
_IMPLEMENTATION = "https://github.com/huggingface/diffusers"

# Name of a family's architecture, and the published models that a module's width of input tells apart.
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
_BASE_VERSIONS: dict[str, dict[str, str]] = {  # by the beginning of the architecture's name
    "stable-diffusion-v1": {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    "stable-diffusion-v2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "stable-diffusion-xl": {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
    "stable-diffusion-3": {"ss_base_model_version": "sd3"},
    "flux-1": {"ss_base_model_version": "flux1"},
    "flux-2": {"ss_base_model_version": "flux2"},
}
_MODULES = {"lora": "networks.lora", "dora": "networks.lora"}


def build_metadata(
    adapter: LoadedAdapter,
    family: str,
    changes: Mapping[str, DeltaWeight],
    tensors: Mapping[str, torch.Tensor],
    base: Path | None = None,
    name: str | None = None,
) -> dict[str, str]:
    """Metadata of a file in which `tensors` spell `changes`; `base` adds the prediction type, `name` the
    private names of file and base."""
    kind, rank, alpha = _method_rank_alpha(changes, tensors)
    facts: dict[str, Any] = {key: adapter.facts[key] for key in _KEPT_KEYS if key in adapter.facts}
    facts |= {"type": kind, "family": family, "rank": rank, "alpha": alpha}
    if any(isinstance(change, DoraDelta) and change.over == "base" for change in changes.values()):
        facts["magnitude_over"] = "base"
    architecture = _architecture(family, changes)
    entries = {
        "format": "pt",
        "lorakit": json.dumps(facts, sort_keys=True, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": f"{_title(family)} LoRA",
        "modelspec.hash_sha256": f"0x{_tensor_hash(tensors)}",
        "ss_network_module": _MODULES.get(kind, "lycoris.kohya"),
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }
    for beginning, versions in _BASE_VERSIONS.items():
        if architecture.startswith(beginning):
            entries |= versions
    if isinstance(resolution := facts.get("resolution"), int):
        entries["modelspec.resolution"] = f"{resolution}x{resolution}"
    if isinstance(trigger := facts.get("trigger"), str) and trigger:
        entries["modelspec.trigger_phrase"] = trigger
    if (
        base is not None
        and (base / "scheduler" / "scheduler_config.json").is_file()
        and _is_ddpm_family(family)
    ):
        entries["modelspec.prediction_type"] = _prediction_type(base)
    if name is not None:
        entries["ss_output_name"] = name
        if isinstance(trained := adapter.facts.get("base"), str):
            entries["ss_sd_model_name"] = PureWindowsPath(trained).name
    return entries


def _method_rank_alpha(
    changes: Mapping[str, DeltaWeight], tensors: Mapping[str, torch.Tensor]
) -> tuple[str, int, float]:
    """(kind, rank, alpha) of most modules, as the file states them."""
    kind = Counter(change.kind for change in changes.values()).most_common(1)[0][0]
    rank = max(1, Counter(change.rank for change in changes.values()).most_common(1)[0][0])
    # With alpha multiplied in, the file's own alpha is its rank; any other would be applied a second time.
    stated = next((float(tensors[key]) for key in sorted(tensors) if key.endswith(".alpha")), float(rank))
    return kind, rank, stated


def _architecture(family: str, changes: Mapping[str, DeltaWeight]) -> str:
    ending, widths = _WIDTHS.get(family, ("\0", {}))
    inputs = [change.shape[1] for module, change in changes.items() if module.endswith(ending)]
    name = widths.get(inputs[0] if inputs else 0, _DEFAULT_ARCHITECTURE.get(family, family))
    if name == "stable-diffusion-3-medium" and any(".attn2." in module for module in changes):
        return "stable-diffusion-3.5-medium"  # as wide as 3 medium, but with a second attention
    return name


def _title(family: str) -> str:
    try:
        return families.get_family(family).title
    except ConfigError:  # a family that was derived for one model has no name of its own
        return family


def _is_ddpm_family(family: str) -> bool:
    try:
        return families.get_family(family).objective == "ddpm"
    except ConfigError:
        return False


def _tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the file's tensor bytes, the part after the header, as ModelSpec defines it."""
    data = storage.safetensors_bytes(tensors)
    return storage.sha256_bytes(data[8 + int.from_bytes(data[:8], "little") :])


def _prediction_type(base: Path) -> str:
    config: dict[str, Any] = storage.read_json(base / "scheduler" / "scheduler_config.json")
    return "v" if config.get("prediction_type") == "v_prediction" else "epsilon"
