"""Files and folders that are given as a recipe and are something else: what they are, and what to do."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.core.errors import ConfigError
from lorakit.core.input_files import read_bytes
from lorakit.core.path_kind import DESCRIPTIONS, Kind, path_kind

_GIVE_RECIPE = "give a YAML file, or one of the recipes that `lorakit recipes` lists"
_LIST = "`lorakit recipes` lists recipes"
_MAX_BYTES = 1 << 20
# trainer: keys of its configuration files, of which two are enough
_TRAINERS = {
    "ai-toolkit": {"job", "config", "process", "trigger_word", "job_name", "network"},
    "OneTrainer": {
        "training_method", "base_model_name", "concept_file_name", "workspace_dir", "lora_rank", "model_type",
        "output_model_destination", "output_model_format",
    },
    "SimpleTuner": {
        "model_family", "data_backend_config", "lora_rank", "max_train_steps", "model_flavour", "lora_type",
        "base_model_precision",
    },
    "diffusion-pipe": {
        "micro_batch_size_per_gpu", "pipeline_stages", "save_dtype", "blocks_to_swap", "adapter",
        "activation_checkpointing",
    },
    "kohya's scripts": {
        "network_dim", "network_alpha", "network_module", "max_train_steps", "max_train_epochs",
        "train_data_dir", "pretrained_model_name_or_path", "output_name", "optimizer_type",
        "mixed_precision", "learning_rate", "dataset_config", "save_model_as", "dit",
    },
}  # fmt: skip
_RECIPE_KEYS = {"base", "dataset", "out", "adapter", "optimizer", "train", "objective", "memory", "samples"}


def check_recipe_path(path: Path) -> None:
    """Raise ConfigError if a path that is named as a recipe is a folder, or a file of another kind."""
    kind = path_kind(path)
    if kind in (None, "recipe", "json", "file", "toml"):
        return
    assert kind is not None
    raise ConfigError(
        f"this is {DESCRIPTIONS[kind]}, not a recipe", where=str(path), remedy=_remedy(kind, path)
    )


def _remedy(kind: Kind, path: Path) -> str:
    """Return what to do with a path of another kind."""
    match kind:
        case "run":
            return f"lorakit resume {path}"
        case "dataset" | "images":
            return f"name a recipe and the folder: lorakit train RECIPE dataset={path}; {_LIST}"
        case "manifest":
            return f"name a recipe and the folder: lorakit train RECIPE dataset={path.parent}; {_LIST}"
        case "model" | "weights":
            adapter = f", or an adapter to start from: init_from={path}" if kind == "weights" else ""
            return f"name a recipe; this is the base model: lorakit train RECIPE base={path}{adapter}"
        case "peft":
            return f"name a recipe; this is an adapter to start from: lorakit train RECIPE init_from={path}"
        case "prompts":
            return f"name a recipe; a prompt file belongs to it: lorakit train RECIPE samples.prompts={path}"
        case "pickle":
            return "give weights as .safetensors, to a recipe's `base`"
    return _GIVE_RECIPE


def read_toml(path: Path) -> Any:
    """Return the content of a TOML file, which no recipe is; used to say what it is."""
    try:
        data = read_bytes(path, _MAX_BYTES, error=ConfigError)
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    try:
        return tomllib.loads(data.decode("utf-8", "replace"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def check_is_recipe(tree: Any, file: Path) -> None:
    """Raise ConfigError if the content of a file is not a recipe: no mapping, or another trainer's."""
    if trainer := trainer_of(tree):
        raise ConfigError(
            f"this is a configuration of {trainer}, not a recipe of lorakit",
            where=str(file),
            remedy=f"make a recipe of it: lorakit recipe import {file} --out recipe.yaml",
        )
    if not isinstance(tree, dict):
        raise ConfigError("a recipe is a mapping of keys to values", where=str(file), remedy=_GIVE_RECIPE)
    if file.suffix.lower() == ".toml":
        raise ConfigError("this is a TOML file, not a recipe", where=str(file), remedy=_GIVE_RECIPE)


def trainer_of(tree: Any) -> str | None:
    """Return the trainer whose configuration a tree is; None for a recipe and for anything else."""
    has_recipe_keys = isinstance(tree, dict) and bool(_RECIPE_KEYS & tree.keys() - {"train", "model"})
    names = set(_names(tree))
    counts = {trainer: len(marks & names) for trainer, marks in _TRAINERS.items()}
    best = max(counts, key=lambda trainer: counts[trainer])
    return best if counts[best] >= (3 if has_recipe_keys else 2) else None


def _names(tree: Any, depth: int = 0) -> Iterator[str]:
    """Yield the keys of all levels; leading dashes of options are left out."""
    if depth > 6:
        return
    if isinstance(tree, list):
        for entry in tree[:20]:
            yield from _names(entry, depth + 1)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield str(key).lstrip("-")
            yield from _names(value, depth + 1)
