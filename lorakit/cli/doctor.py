"""`lorakit doctor`: installed packages, disk space, what is missing, and what this machine can train.

What it can train is an estimate from a short measurement: see `lorakit.planner.outlook`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from lorakit.core.command_line import command, is_quiet, option, print_answer, wants_json
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
    "c2pa-python": ("c2pa", "signs images and checks their signatures (extra: c2pa)"),
    "pillow-heif": ("pillow_heif", "reads HEIC photos of phones"),
    "prodigyopt": ("prodigyopt", "optimizer: prodigy (extra: optimizers)"),
    "pytorch-optimizer": ("pytorch_optimizer", "optimizer: came (extra: optimizers)"),
    "schedulefree": ("schedulefree", "optimizer: schedulefree_adamw (extra: optimizers)"),
    "tensorboard": ("tensorboard", "tracker: tensorboard (extra: tensorboard)"),
}
MIN_FREE_GIB = 2
INSTALL_TORCH = (  # uv keeps an installed torch unless it is named
    "`uv pip install --torch-backend=auto --reinstall-package torch --reinstall-package torchvision torch"
    " torchvision`, and start lorakit by `uv run --no-sync lorakit`, which keeps it"
)
_WITHOUT = {
    "optimizer adamw8bit": "train with optimizer.name=adamw",
    "memory.quantize nf4": "train with memory.quantize=int8, or without",
    "memory.quantize int8": "train with memory.quantize=nf4, or without",
    "memory.quantize fp8": "train with memory.quantize=int8, or without",
}


@command(
    "doctor",
    option("--quick", is_flag=True, help="Measure no speed: saves a few seconds, and the times of steps."),
    example="lorakit doctor",
)
def doctor_command(quick: bool) -> int:
    """Check the installation, and show what this machine can train.

    Devices with their memory, the 8-bit optimizer really run, the speed measured for two seconds, and an
    estimate of which models fit and how long a step takes. The exit code is 2 if something is missing.
    """
    environment = inspect_environment(quick=quick, quiet=is_quiet() or wants_json())
    print_answer(environment, lambda: _print_report(environment))
    return ConfigError.exit_code if find_problems(environment) else 0


def inspect_environment(*, quick: bool = True, quiet: bool = True) -> dict[str, Any]:
    """Return what `lorakit doctor` shows, as plain values; `quick` measures no speed."""
    from lorakit.core.platform import total_memory
    from lorakit.models import base_model, cache_size
    from lorakit.models.offline_judges import judge_states

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
        **_inspect_devices(quick=quick, quiet=quiet),
        "embedded_bases": {
            name: (base_model.EMBEDDED_FOLDER / name / base_model.MODEL_INDEX).is_file()
            for name in base_model.EMBEDDED_BASES
        },
        "embedded_clip": base_model.EMBEDDED_CLIP.is_dir(),
        "judges": [state.to_json() for state in judge_states()],
        "offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES"),
        "cache_dir": str(cache),
        "cache_bytes": cache_size.cache_sizes(cache),
        "free_gib": round(shutil.disk_usage(_nearest_existing(cache)).free / 2**30, 1),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _inspect_devices(*, quick: bool, quiet: bool) -> dict[str, Any]:
    """Return the devices, what fails on the first one, and what it can train."""
    if importlib.util.find_spec("torch") is None:
        return {"devices": [], "failures": {}, "unused_gpu": None, "unusable_driver": None, "training": None}
    from lorakit.core.platform import total_memory
    from lorakit.models import device as devices
    from lorakit.models import device_checks
    from lorakit.models.memory import quantized_layers
    from lorakit.planner import outlook

    all_devices = devices.list_devices()
    first = all_devices[0]
    speed = None if quick else device_checks.measure_teraflops(first.device, quiet=quiet)
    dtype = devices.compute_dtype(first.precisions[0])
    outlooks = outlook.training_outlook(
        first.device.type, first.memory_bytes, total_memory(), dtype, speed, first.name
    )
    return {
        "devices": [device.to_json() for device in all_devices],
        "failures": {
            "optimizer adamw8bit": device_checks.check_8bit_optimizer(first.device),
            **{
                f"memory.quantize {name}": device_checks.check_quantized_layers(first.device, name)
                for name in quantized_layers.LAYERS
            },
        },
        "unused_gpu": device_checks.unused_gpu(),
        "unusable_driver": device_checks.unusable_driver(),
        "training": {
            "device": str(first.device),
            "teraflops_per_second": None if speed is None else float(f"{speed:.3g}"),
            "embedded_models": True,
            "models": [one.to_json() for one in outlooks],
            "estimated_by": [outlook.MEMORY_RULE, outlook.TIME_RULE],
        },
    }


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
    if gpu := environment["unused_gpu"]:
        problems.append(
            f"the installed torch cannot use this machine's GPU ({gpu}): install another build with"
            f" {INSTALL_TORCH}"
        )
    if gpu := environment["unusable_driver"]:
        problems.append(f"torch does not reach the GPU ({gpu}): update its driver, then restart the machine")
    problems += [
        f"{part} does not work on this device ({reason}): {_WITHOUT[part]}"
        for part, reason in environment["failures"].items()
        if reason
    ]
    if environment["free_gib"] < MIN_FREE_GIB:
        free, cache = environment["free_gib"], environment["cache_dir"]
        problems.append(f"only {free} GiB are free at {cache}: set LORAKIT_CACHE to a folder on another disk")
    return problems


def _print_report(environment: dict[str, Any]) -> None:
    from lorakit.core.tables import print_table
    from lorakit.models.cache_size import describe_sizes

    rows = [
        ("Python", environment["python"], environment["platform"]),
        ("processor", f"{environment['cores']} cores", f"{environment['memory_gib']} GiB memory"),
        *(_device_row(device) for device in environment["devices"]),
        *((part, reason or "works", "") for part, reason in environment["failures"].items()),
        *((name, version or "MISSING", "") for name, version in environment["packages"].items()),
        *(
            (name, entry["version"] or "not installed", f"optional: {entry['enables']}")
            for name, entry in environment["optional"].items()
        ),
        *(
            (f"judge {judge['name']}", "works offline", judge["measures"])
            if judge["offline"]
            else (f"judge {judge['name']}", "not here", f"{judge['measures']}; needs {judge['remedy']}")
            for judge in environment["judges"]
        ),
        ("cache", f"{environment['free_gib']} GiB free", environment["cache_dir"]),
        ("size of the cache", describe_sizes(environment["cache_bytes"]), "may be deleted"),
        ("model hub", "offline" if environment["offline"] else "online", ""),
    ]
    print_table(("part", "state", "details"), rows)
    if environment["training"]:
        print()
        _print_training(environment["training"], environment["devices"])
    problems = find_problems(environment)
    print()
    print(
        "\n".join(f"PROBLEM: {problem}" for problem in problems) or "lorakit can be used: nothing is missing"
    )


def _device_row(device: dict[str, Any]) -> tuple[str, str, str]:
    memory = f"{device['memory_gib']:g} GiB memory; computes in {', '.join(device['precisions'])}"
    return f"device {device['device']}", f"{device['platform']} {device['name']}", memory


def _print_training(training: dict[str, Any], devices: list[dict[str, Any]]) -> None:
    """Print which models the first device can train, as an estimate, and how long a step takes."""
    from lorakit.core.tables import print_table

    memory = devices[0]["memory_gib"]
    print(f"estimate: training on {training['device']} with {memory:g} GiB of memory")
    rows: list[tuple[str, ...]] = [("embedded: tiny-unet, tiny-dit", "64", "yes", "", "")]
    rows += [
        (
            model["model"],
            str(model["resolution"]),
            _fit(model),
            f"{model['peak_gib']:g} GiB" if model["fits"] else "",
            _duration(model["step_seconds"]),
        )
        for model in training["models"]
    ]
    print_table(("model", "pixels", "fits", "peak", "time for an image"), rows)
    print("\n".join(f"  {rule}" for rule in training["estimated_by"]))
    if training["device"] == "cpu":
        print(_cpu_advice(training["models"]))


def _fit(model: dict[str, Any]) -> str:
    if not model["fits"]:
        return f"no: {model['shortage']}"
    settings = "" if model["settings"] == "nothing" else f", with {model['settings']}"
    return f"yes{settings}" if model["practical"] else f"yes{settings}, but slow"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _cpu_advice(models: list[dict[str, Any]]) -> str:
    """Return a sentence on what a machine without a GPU is good for."""
    first = models[0]
    text = "no GPU: only small models are practical here, such as those of `lorakit quickstart`"
    if first["step_seconds"] is None:
        return text
    hours = first["step_seconds"] * 1500 / 3600
    return (
        f"{text}; a step of {first['model']} at {first['resolution']} px takes about"
        f" {_duration(first['step_seconds'])} for each image, 1500 steps of one image {hours:.0f} hours"
    )
