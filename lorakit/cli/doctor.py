"""What is installed, which devices there are, what is missing and what it would give."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

REQUIRED = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "open-clip-torch",
    "safetensors",
    "datasets",
    "wandb",
    "pillow",
    "numpy",
)
OPTIONAL = {
    "av": ("av", "reads clips (extra: video)"),
    "pillow-heif": ("pillow_heif", "reads HEIC photos of phones (extra: heif)"),
    "tensorboard": ("tensorboard", "tracker: tensorboard (extra: tensorboard)"),
}


def inspect_environment() -> dict[str, Any]:
    """Everything `lorakit doctor` shows, as plain values."""
    from lorakit.models import base_model

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": _memory(),
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": {
            name: {"version": _version(name), "gives": gives}
            for name, (module, gives) in OPTIONAL.items()
            if importlib.util.find_spec(module) or _version(name) is None
        },
        "devices": _devices(),
        "embedded": {
            name: (base_model.EMBEDDED_FOLDER / name / base_model.MODEL_INDEX).is_file()
            for name in base_model.EMBEDDED_BASES
        },
        "embedded_clip": base_model.EMBEDDED_CLIP.is_dir(),
        "offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES"),
        "cache": str(base_model.cache_folder()),
        "free_gib": round(shutil.disk_usage(_nearest_existing(base_model.cache_folder())).free / 2**30, 1),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    found = [
        f"cuda:{i} {torch.cuda.get_device_name(i)}, "
        f"{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
        for i in range(torch.cuda.device_count())
    ]
    return found or ["cpu"]


def find_problems(found: dict[str, Any]) -> list[str]:
    """What keeps lorakit from working, with the remedy."""
    missing = [name for name, version in found["packages"].items() if version is None]
    lines = [f"{name} is not installed: uv sync" for name in missing]
    lines += [
        f"the embedded base {name} is missing" for name, there in found["embedded"].items() if not there
    ]
    if found["free_gib"] < 2:
        lines.append(f"only {found['free_gib']} GiB free at {found['cache']}: set LORAKIT_CACHE elsewhere")
    return lines


def format_report(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"lorakit on Python {found['python']}, {found['system']}"]
    lines.append(
        f"{found['cores']} cores, {found['memory_gib']} GiB memory, devices: {', '.join(found['devices'])}"
    )
    lines.append("packages: " + ", ".join(f"{n} {v or 'MISSING'}" for n, v in found["packages"].items()))
    for name, part in found["optional"].items():
        lines.append(f"optional {name}: {part['version'] or 'not installed'} - {part['gives']}")
    lines.append(f"cache: {found['cache']}, {found['free_gib']} GiB free; hub offline: {found['offline']}")
    wrong = find_problems(found)
    lines += [f"PROBLEM: {line}" for line in wrong] or ["everything that lorakit needs is here"]
    return "\n".join(lines)
