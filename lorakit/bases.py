"""Base models: from what a recipe names to a local diffusers folder and the hashes of its content.

Nothing here imports torch; fetching from a hub happens here and nowhere else, before any work.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache, partial
from pathlib import Path

from lorakit import storage
from lorakit.errors import ConfigError

EMBEDDED_FOLDER = Path(__file__).parent / "quickstart" / "weights"
EMBEDDED = ("tiny-unet", "tiny-dit")
EMBEDDED_CLIP = EMBEDDED_FOLDER / "clip"
INDEX = "model_index.json"

_HUB_PATTERNS = [
    "model_index.json",
    *(f"*/*.{end}" for end in ("json", "safetensors", "txt", "model", "jinja")),
]
_HUB_IGNORED = ["*.fp16.safetensors", "*.non_ema.safetensors", "*flax*", "safety_checker/*"]


def is_embedded(spec: str) -> bool:
    """Whether the base is one that ships with lorakit."""
    return spec in EMBEDDED


def resolve(spec: str) -> Path:
    """The local folder of a base: embedded name, folder, or hub id with an optional @revision (fetched
    once)."""
    if is_embedded(spec):
        folder = EMBEDDED_FOLDER / spec
    elif Path(spec).is_dir():
        folder = Path(spec)
    elif Path(spec).suffix in (".safetensors", ".ckpt", ".bin", ".pt"):
        raise ConfigError(
            "single-file checkpoints cannot be loaded yet",
            where=f"base: {spec}",
            remedy="convert it to a diffusers folder and give that folder",
        )
    elif spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        folder = _fetch(spec)
    else:
        raise ConfigError(
            "there is no such base model",
            where=f"base: {spec}",
            remedy=f"give an embedded name ({', '.join(EMBEDDED)}), a diffusers folder, or a hub id",
        )
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"not a diffusers folder: it has no {INDEX}",
            where=f"base: {spec}",
            remedy="give the folder that holds model_index.json with its unet/ or transformer/ beside it",
        )
    return folder


def _fetch(spec: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = spec.partition("@")
    get = partial(
        snapshot_download,
        name,
        revision=revision or None,
        allow_patterns=_HUB_PATTERNS,
        ignore_patterns=_HUB_IGNORED,
    )
    with contextlib.suppress(Exception):  # not (wholly) in the local cache, for whatever reason: ask the hub
        return Path(get(local_files_only=True))
    try:
        return Path(get())
    except Exception as error:
        raise ConfigError(
            f"the base could not be fetched: {type(error).__name__}: {str(error).splitlines()[0]}",
            where=f"base: {spec}",
            remedy="check the name, the network and your access to it, or give a local diffusers folder",
        ) from error


@lru_cache(maxsize=4)
def part_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each component's files ({"vae": ..., "unet": ...}; "" for files beside the folders)."""
    parts: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja") and file.is_file():
            relative = file.relative_to(folder)
            part = relative.parts[0] if len(relative.parts) > 1 else ""
            parts.setdefault(part, []).append(f"{relative.as_posix()} {storage.sha256_file(file)}")
    return {part: storage.sha256_bytes("\n".join(lines).encode()) for part, lines in sorted(parts.items())}


def content_hash(folder: Path) -> str:
    """SHA-256 of the whole base."""
    return storage.sha256_bytes(storage.dump_json(part_hashes(folder)).encode())
