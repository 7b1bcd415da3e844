"""What an exported file says about itself: an allow-list, the same bytes for the same adapter.

https://github.com/Stability-AI/ModelSpec (1.0.1) and the `ss_` keys that user interfaces show. Left out:
dates (equal adapters give equal files), file and model names, paths, captions and tag counts, which are the
trainer's own business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit import families, storage

if TYPE_CHECKING:
    import torch

    from lorakit.export.adapter_file import Adapter

_FACTS = ("type", "family", "pipeline", "base_hash", "resolution", "trigger", "steps", "recipe_hash")
_IMPLEMENTATION = "https://github.com/huggingface/diffusers"

# Width of a module's input -> the published model that has it; anything else is named by its family alone.
_WIDTHS: dict[str, tuple[str, dict[int, str]]] = {
    "sd15": ("attn2.to_k", {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2"}),
    "sd3": ("attn.to_q", {1536: "stable-diffusion-3-medium", 2432: "stable-diffusion-3.5-large"}),
    "flux2": ("attn.to_q", {6144: "flux-2-dev", 3072: "flux-2-klein-4b", 4096: "flux-2-klein-9b"}),
}
_GENERIC = {"sd15": "stable-diffusion-v1", "sd3": "stable-diffusion-3", "flux2": "flux-2"}
_BASE_VERSIONS: dict[str, dict[str, str]] = {  # by the beginning of the architecture's name
    "stable-diffusion-v1": {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    "stable-diffusion-v2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "stable-diffusion-3": {"ss_base_model_version": "sd3"},
    "flux-2": {"ss_base_model_version": "flux2"},
}


def build(adapter: Adapter, tensors: Mapping[str, torch.Tensor], base: Path | None) -> dict[str, str]:
    """Metadata of an exported file holding `tensors`; `base` adds the prediction type."""
    family = families.by_name(adapter.family or "")
    first = next(iter(adapter.changes.values()))
    # With alpha multiplied in, the file's own alpha is its rank; any other would be applied a second time.
    stated = any(key.endswith(".alpha") for key in tensors)
    alpha = first.scale * first.rank if stated else float(first.rank)
    facts = {key: adapter.facts[key] for key in _FACTS if key in adapter.facts}
    facts |= {"rank": first.rank, "alpha": alpha}
    architecture = _architecture(adapter)
    entries = {
        "format": "pt",
        "lorakit": json.dumps(facts, sort_keys=True, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": f"{family.title} LoRA",
        "modelspec.hash_sha256": f"0x{_tensor_hash(tensors)}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(first.rank),
        "ss_network_alpha": f"{alpha:g}",
    }
    for beginning, versions in _BASE_VERSIONS.items():
        if architecture.startswith(beginning):
            entries |= versions
    if isinstance(resolution := facts.get("resolution"), int):
        entries["modelspec.resolution"] = f"{resolution}x{resolution}"
    if isinstance(trigger := facts.get("trigger"), str) and trigger:
        entries["modelspec.trigger_phrase"] = trigger
    if base is not None and family.objective == "ddpm":
        entries["modelspec.prediction_type"] = _prediction_type(base)
    return entries


def _architecture(adapter: Adapter) -> str:
    family = adapter.family or ""
    ending, widths = _WIDTHS[family]
    inputs = [change.down.shape[1] for module, change in adapter.changes.items() if module.endswith(ending)]
    name = widths.get(inputs[0], _GENERIC[family]) if inputs else _GENERIC[family]
    if name == "stable-diffusion-3-medium" and any(".attn2." in module for module in adapter.changes):
        return "stable-diffusion-3.5-medium"  # as wide as 3 medium, but with a second attention
    return name


def _tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the file's tensor bytes, the part after the header, as ModelSpec defines it."""
    data = storage.safetensors_bytes(tensors)
    return storage.sha256_bytes(data[8 + int.from_bytes(data[:8], "little") :])


def _prediction_type(base: Path) -> str:
    config: dict[str, Any] = storage.read_json(base / "scheduler" / "scheduler_config.json")
    return "v" if config.get("prediction_type") == "v_prediction" else "epsilon"
