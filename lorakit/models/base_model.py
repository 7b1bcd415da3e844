"""Base models: from what a recipe names to a local diffusers folder and the hashes of its content.

Nothing here imports torch. A hub id is fetched whole (`hub`) before any work; from then on all is local.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from lorakit.core import safetensors_header, storage
from lorakit.core.errors import ConfigError
from lorakit.models import hub, single_file

EMBEDDED_FOLDER = Path(__file__).parents[1] / "quickstart" / "weights"
EMBEDDED_BASES = ("tiny-unet", "tiny-dit")
EMBEDDED_CLIP = EMBEDDED_FOLDER / "clip"
MODEL_INDEX = single_file.INDEX
MODULAR_INDEX = "modular_model_index.json"
"""What a model that is published as modular blocks has instead."""


def is_embedded(spec: str) -> bool:
    """Whether the base is one that ships with lorakit."""
    return spec in EMBEDDED_BASES


def cache_folder() -> Path:
    """What may be deleted at any time: $LORAKIT_CACHE, else lorakit in the user's cache folder."""
    if own := os.environ.get("LORAKIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorakit"


def absolute_spec(spec: str) -> str:
    """The base with whole paths where it names local folders or files, and with its commit on a hub."""
    if is_embedded(spec):
        return spec
    file, parts = single_file.split_spec(spec)
    if not Path(file).exists():
        return pin_revision(spec)
    whole = str(Path(file).resolve())
    if not parts:
        return whole
    return f"{whole}@{Path(parts).resolve() if Path(parts).is_dir() else parts}"


def resolve_base(spec: str) -> Path:
    """The local folder of a base: embedded name, folder, single file (converted once), or hub id with an
    optional @revision (fetched once)."""
    if is_embedded(spec):
        folder = EMBEDDED_FOLDER / spec
    elif Path(spec).is_dir():
        folder = Path(spec)
    elif single_file.is_single_file(spec):
        folder = single_file.converted_folder(spec, cache_folder() / "bases")
    elif spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        folder = hub.download_model(spec)
    else:
        raise ConfigError(
            "there is no such base model",
            where=f"base: {spec}",
            remedy=f"give an embedded name ({', '.join(EMBEDDED_BASES)}), a diffusers folder, a .safetensors"
            " checkpoint, or a hub id",
        )
    if not any((folder / name).is_file() for name in (MODEL_INDEX, MODULAR_INDEX)):
        raise ConfigError(
            f"not a diffusers folder: it has no {MODEL_INDEX}",
            where=f"base: {spec}",
            remedy="give the folder that holds model_index.json with its unet/ or transformer/ beside it",
        )
    for weights in sorted(folder.glob("*/*.safetensors")):
        safetensors_header.check_safetensors(weights)
    return folder


def pin_revision(spec: str) -> str:
    """A hub id with the commit that it stands for here (`id@<40 hex digits>`); any other spec as it is."""
    if is_embedded(spec) or Path(spec).exists():
        return spec
    folder = resolve_base(spec)
    return f"{spec.partition('@')[0]}@{folder.name}" if folder.parent.name == "snapshots" else spec


@lru_cache(maxsize=4)
def component_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each component's files ({"vae": ..., "unet": ...}; "" for files beside the folders)."""
    parts: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja") and file.is_file():
            relative = file.relative_to(folder)
            part = relative.parts[0] if len(relative.parts) > 1 else ""
            parts.setdefault(part, []).append(f"{relative.as_posix()} {storage.sha256_file(file)}")
    return {part: storage.sha256_bytes("\n".join(lines).encode()) for part, lines in sorted(parts.items())}


def base_hash(folder: Path) -> str:
    """SHA-256 of the whole base."""
    return storage.sha256_bytes(storage.dump_json(component_hashes(folder)).encode())
