"""Descriptions of what lies at a path, for errors about one that is something else than expected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Kind = Literal[
    "run", "model", "peft", "dataset", "images", "empty", "folder", "recipe", "weights", "pickle", "prompts",
    "manifest", "image", "toml", "json", "file",
]  # fmt: skip
DESCRIPTIONS: dict[Kind, str] = {
    "run": "the folder of a run",
    "model": "a base model in a diffusers folder",
    "peft": "a peft adapter folder",
    "dataset": "a prepared dataset",
    "images": "a folder of images",
    "empty": "an empty folder",
    "folder": "a folder",
    "recipe": "a YAML file",
    "weights": "a .safetensors file",
    "pickle": "a pickle file of weights, which can run code",
    "prompts": "a file of JSON lines, such as prompts",
    "manifest": "the manifest of a dataset",
    "image": "an image",
    "toml": "a TOML file",
    "json": "a JSON file",
    "file": "a file",
}
_IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".jxl",
}
_KINDS_BY_SUFFIX: dict[str, Kind] = {
    ".yaml": "recipe", ".yml": "recipe", ".toml": "toml", ".json": "json", ".jsonl": "prompts",
    ".safetensors": "weights", ".sft": "weights",
    ".ckpt": "pickle", ".pt": "pickle", ".pth": "pickle", ".bin": "pickle",
}  # fmt: skip
_MAX_ENTRIES = 2000


def path_kind(path: str | os.PathLike[str]) -> Kind | None:
    """Return what a path is, by the names of files only; None if nothing is there."""
    path = Path(path)
    if path.is_dir():
        return _folder_kind(path)
    if not path.exists():
        return None
    if path.name in ("manifest.jsonl", "metadata.jsonl", "metadata.csv"):
        return "manifest"
    suffix = path.suffix.lower()
    return "image" if suffix in _IMAGE_SUFFIXES else _KINDS_BY_SUFFIX.get(suffix, "file")


def describe_path(path: str | os.PathLike[str]) -> str | None:
    """Return what a path is in words, such as "a folder of images"; None if nothing is there."""
    kind = path_kind(path)
    return DESCRIPTIONS[kind] if kind else None


def it_is(path: str | os.PathLike[str]) -> str:
    """Return ": it is a folder of images" and the like; empty if nothing is at the path."""
    description = describe_path(path)
    return f": it is {description}" if description else ""


def _folder_kind(folder: Path) -> Kind:
    marks: dict[str, Kind] = {
        "recipe.yaml": "run", "run.json": "run",
        "model_index.json": "model", "modular_model_index.json": "model",
        "adapter_config.json": "peft",
        "manifest.jsonl": "dataset",
    }  # fmt: skip
    for name, kind in marks.items():
        if (folder / name).is_file():
            return kind
    try:
        below = [entry for _, entry in zip(range(_MAX_ENTRIES), folder.iterdir(), strict=False)]
        folders = [entry for entry in below if entry.is_dir()][:20]
        deeper = [entry for one in folders for _, entry in zip(range(50), one.iterdir(), strict=False)]
    except OSError:
        return "folder"
    if any(entry.suffix.lower() in _IMAGE_SUFFIXES for entry in (*below, *deeper)):
        return "images"
    return "folder" if below else "empty"
