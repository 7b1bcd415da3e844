"""`lorakit doctor`: installed packages, devices, disk space, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from lorakit.core.command_line import command, print_answer
from lorakit.core.errors import ConfigError

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
    "av": ("av", "reads videos (extra: video)"),
    "pillow-heif": ("pillow_heif", "reads HEIC photos of phones (extra: heif)"),
    "tensorboard": ("tensorboard", "tracker: tensorboard (extra: tensorboard)"),
}
MIN_FREE_GIB = 2


@command("doctor", example="lorakit doctor")
def doctor_command() -> int:
    """Check the installation and show the devices. The exit code is 2 if something is missing."""
    environment = inspect_environment()
    print_answer(environment, lambda: _print_report(environment))
    return ConfigError.exit_code if find_problems(environment) else 0


def inspect_environment() -> dict[str, Any]:
    """Return what `lorakit doctor` shows, as plain values."""
    from lorakit.core.platform import total_memory
    from lorakit.models import base_model

    cache = base_model.cache_folder()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(total_memory() / 2**30, 1),
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": {
            name: {"version": _version(name), "enables": enables}
            for name, (module, enables) in OPTIONAL.items()
            if importlib.util.find_spec(module) or _version(name) is None
        },
        "devices": _devices(),
        "embedded_bases": {
            name: (base_model.EMBEDDED_FOLDER / name / base_model.MODEL_INDEX).is_file()
            for name in base_model.EMBEDDED_BASES
        },
        "embedded_clip": base_model.EMBEDDED_CLIP.is_dir(),
        "offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES"),
        "cache_dir": str(cache),
        "free_gib": round(shutil.disk_usage(_nearest_existing(cache)).free / 2**30, 1),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    return devices or ["cpu"]


def find_problems(environment: dict[str, Any]) -> list[str]:
    """Return what keeps lorakit from working, each with its remedy."""
    problems = [
        f"{name} is not installed: pip install {name}"
        for name, version in environment["packages"].items()
        if version is None
    ]
    problems += [
        f"the embedded base model {name} is missing: install lorakit again"
        for name, exists in environment["embedded_bases"].items()
        if not exists
    ]
    if environment["free_gib"] < MIN_FREE_GIB:
        free, cache = environment["free_gib"], environment["cache_dir"]
        problems.append(f"only {free} GiB are free at {cache}: set LORAKIT_CACHE to a folder on another disk")
    return problems


def _print_report(environment: dict[str, Any]) -> None:
    from lorakit.core.tables import print_table

    rows = [
        ("Python", environment["python"], environment["platform"]),
        ("processor", f"{environment['cores']} cores", f"{environment['memory_gib']} GiB memory"),
        *(("device", device, "") for device in environment["devices"]),
        *((name, version or "MISSING", "") for name, version in environment["packages"].items()),
        *(
            (name, entry["version"] or "not installed", f"optional: {entry['enables']}")
            for name, entry in environment["optional"].items()
        ),
        ("cache", f"{environment['free_gib']} GiB free", environment["cache_dir"]),
        ("model hub", "offline" if environment["offline"] else "online", ""),
    ]
    print_table(("part", "state", "details"), rows)
    problems = find_problems(environment)
    print(
        "\n".join(f"PROBLEM: {problem}" for problem in problems) or "lorakit can be used: nothing is missing"
    )
