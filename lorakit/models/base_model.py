"""Base models: from a recipe's `base` to a local diffusers folder and the hashes of its content.

This module does not import torch. A hub id is downloaded completely (`hub`) before any work; everything after
that is local.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from lorakit.core import checksums, path_kind, safetensors_header, storage
from lorakit.core.errors import ConfigError
from lorakit.core.file_hashes import FileHashes
from lorakit.core.folders import walk_files
from lorakit.core.nearest import did_you_mean
from lorakit.core.path_kind import it_is
from lorakit.models import hub, single_file

EMBEDDED_FOLDER = Path(__file__).parents[1] / "quickstart" / "weights"
EMBEDDED_BASES = ("tiny-unet", "tiny-dit")
EMBEDDED_CLIP = EMBEDDED_FOLDER / "clip"
MODEL_INDEX = single_file.INDEX
MODULAR_INDEX = "modular_model_index.json"
"""Index of models that are published as modular blocks."""

CACHE_VARIABLE = "LORAKIT_CACHE"


def is_embedded(spec: str) -> bool:
    """Return True if the base model ships with lorakit."""
    return spec in EMBEDDED_BASES


def cache_folder() -> Path:
    """Return the folder of files that may be deleted at any time: $LORAKIT_CACHE, else the user's cache."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorakit"


def absolute_spec(spec: str) -> str:
    """Make the paths of local folders and files absolute, and add the commit to a hub id."""
    if is_embedded(spec):
        return spec
    parsed = single_file.split_spec(spec)
    if not Path(parsed.file).exists():
        return pin_revision(spec)
    path = str(Path(parsed.file).resolve())
    if not parsed.parts:
        return path
    return f"{path}@{Path(parsed.parts).resolve() if Path(parsed.parts).is_dir() else parsed.parts}"


def public_name(spec: str) -> str | None:
    """Return the name of a base model that everybody knows: embedded, or of the hub; None for local ones."""
    if is_embedded(spec):
        return spec
    is_local = Path(spec).exists() or single_file.is_single_file(spec) or spec.count("/") != 1
    return None if is_local or spec.startswith((".", "/", "~")) else spec


def local_base_folder(spec: str) -> Path | None:
    """Return the folder of a base model that is embedded or a local folder; None if it is anything else."""
    if is_embedded(spec):
        return resolve_base(spec)
    return Path(spec) if Path(spec).is_dir() else None


def resolve_base(spec: str) -> Path:
    """Return the local folder of a base model.

    `spec` is an embedded name, a folder, a single file (converted once), or a hub id with an optional
    @revision (downloaded once). Raises ConfigError if there is no such base model.
    """
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
            f"there is no such base model{it_is(spec)}{did_you_mean(spec, EMBEDDED_BASES)}",
            where=f"base: {spec}",
            remedy=_recipe_base(spec)
            or f"use an embedded name ({', '.join(EMBEDDED_BASES)}), a diffusers folder, a .safetensors"
            " checkpoint, or a hub id",
        )
    if not any((folder / name).is_file() for name in (MODEL_INDEX, MODULAR_INDEX)):
        raise ConfigError(
            f"not a diffusers folder: it has no {MODEL_INDEX}{_other_kind(folder)}",
            where=f"base: {spec}",
            remedy="name the folder with model_index.json and its unet/ or transformer/ folder",
        )
    for weights in sorted(folder.glob("*/*.safetensors")):
        safetensors_header.check_safetensors(weights)
    return folder


def _recipe_base(spec: str) -> str | None:
    """Return the base model of the built-in recipe of this name, in a sentence; None if there is none."""
    from lorakit.config.builtin_recipes import builtin_recipes
    from lorakit.config.recipe import read_recipe_tree

    if spec not in builtin_recipes():
        return None
    return f"this is a recipe, whose base model is {read_recipe_tree(spec)['base']}"


def _other_kind(folder: Path) -> str:
    kind = path_kind.path_kind(folder)
    return f"; it is {path_kind.DESCRIPTIONS[kind]}" if kind in ("images", "dataset", "run", "peft") else ""


def pin_revision(spec: str) -> str:
    """Add the commit of the local copy to a hub id (`id@<40 hex digits>`); other specs stay unchanged."""
    if is_embedded(spec) or Path(spec).exists():
        return spec
    folder = resolve_base(spec)
    return f"{spec.partition('@')[0]}@{folder.name}" if folder.parent.name == "snapshots" else spec


@lru_cache(maxsize=4)
def component_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each component's files ({"vae": ..., "unet": ...}; "" for files beside them).

    They are kept in the cache folder, so that a base model that does not change is read only once.
    """
    kept = FileHashes.load(
        cache_folder() / "base-hashes" / checksums.sha256_bytes(bytes(folder.resolve()))[:32]
    )
    kept.start_reading()
    names, lines_by_component = [], dict[str, list[str]]()
    for file in sorted(walk_files(folder)):
        if file.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja") and file.is_file():
            relative = file.relative_to(folder)
            component = relative.parts[0] if len(relative.parts) > 1 else ""
            names.append(relative.as_posix())
            lines = lines_by_component.setdefault(component, [])
            lines.append(f"{names[-1]} {kept.sha256(names[-1], file)}")
    kept.save(names)
    return {
        component: checksums.sha256_bytes("\n".join(lines).encode())
        for component, lines in sorted(lines_by_component.items())
    }


def base_hash(folder: Path) -> str:
    """Return the SHA-256 of the whole base model."""
    return checksums.sha256_bytes(storage.dump_json(component_hashes(folder)).encode())
