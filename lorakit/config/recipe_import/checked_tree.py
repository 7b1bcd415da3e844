"""The last part of an import: concepts, epochs as steps, and the check by the recipe's own schema."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorakit.config import validation_errors
from lorakit.config.recipe import Recipe
from lorakit.config.recipe_import.draft import Draft

REQUIRED = {
    "base": "write the base model: a folder, a .safetensors file or a hub id",
    "dataset": "write the folder of your images",
    "out": "write the folder of the run",
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".tif", ".tiff", ".gif")
_MAX_ROUNDS = 30
_REPEATED = re.compile(r"(\d+)_")


def build_tree(draft: Draft) -> dict[str, Any]:
    """Return the recipe as nested values; what its schema does not accept becomes a note."""
    _concepts(draft)
    _epochs(draft)
    if draft.recipe.get("objective.min_snr_gamma"):
        draft.recipe.setdefault("objective.weighting", "min_snr")
    if any(key.startswith("tracker.") for key in draft.recipe):
        draft.recipe["tracker.name"] = draft.recipe.pop("tracker", "wandb")
    for _ in range(_MAX_ROUNDS):
        error = _validation_error(draft)
        if error is None or not _remove_refused(draft, error):
            break
    return nest(draft.recipe)


def missing_keys(tree: dict[str, Any]) -> tuple[str, ...]:
    """Return the required keys that a recipe lacks; a slider needs no dataset."""
    return tuple(key for key in REQUIRED if key not in tree and not (key == "dataset" and "slider" in tree))


def _concepts(draft: Draft) -> None:
    """Make the concepts the dataset: a folder alone, or a list with the words of each."""
    if not draft.concepts:
        return
    draft.recipe.pop("dataset", None)
    only = draft.concepts[0]
    if len(draft.concepts) == 1 and not only.keys() & {"repeats", "weight", "captions"}:
        draft.recipe |= {"dataset": only["folder"]} | (
            {"trigger": only["trigger"]} if "trigger" in only else {}
        )
        return
    for key in ("trigger", "class_noun", "class_images"):
        if (value := draft.recipe.pop(key, None)) is not None:
            for concept in draft.concepts[: 1 if key == "class_images" else None]:
                concept.setdefault(key, value)
    draft.recipe["dataset"] = draft.concepts


def _epochs(draft: Draft) -> None:
    batch = float(draft.recipe.get("train.batch_size", 1)) * float(draft.recipe.get("train.accumulate", 1))
    images = sum(count_images(folder) * repeats for folder, repeats in _folders(draft.recipe.get("dataset")))
    formula = "epochs x images x repeats / (train.batch_size x train.accumulate) steps"
    for key, (setting, value) in draft.epochs.items():
        if key in draft.recipe:
            draft.note(setting, value, f"{key} is already set by another setting of the file")
        elif images and batch:
            draft.recipe[key] = max(1, math.ceil(float(value) * images / batch))
            draft.remarks[key] = f"{setting} {value}: {formula}, of {images} images now"
        else:
            draft.note(setting, value, f"set {key} to {formula}; the images were not there to count")


def _folders(dataset: Any) -> list[tuple[str, int]]:
    if isinstance(dataset, str):
        return [(dataset, 1)]
    return [(concept["folder"], concept.get("repeats", 1)) for concept in dataset or []]


def count_images(folder: str) -> int:
    """Return the images of a folder; those in kohya's folders `10_name` as often as these say."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        return 0
    count = sum(file.suffix.lower() in _IMAGES for file in path.iterdir())
    for child in path.iterdir():
        repeats = _REPEATED.match(child.name)
        if child.is_dir():
            images = sum(file.suffix.lower() in _IMAGES for file in child.iterdir())
            count += images * (int(repeats[1]) if repeats else 1)
    return count


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as sections, in the order of the recipe's schema."""
    tree: dict[str, Any] = {}
    order = [field.alias or name for name, field in Recipe.model_fields.items()]
    for key in sorted(flat, key=lambda name: order.index(name.partition(".")[0])):
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = flat[key]
    return tree


def _validation_error(draft: Draft) -> ValidationError | None:
    filled = dict.fromkeys(REQUIRED, "to be written") | draft.recipe
    if "slider.target_prompt" in draft.recipe and "dataset" not in draft.recipe:
        filled.pop("dataset")
    try:
        Recipe.model_validate(nest(filled))
    except ValidationError as error:
        return error
    return None


def _remove_refused(draft: Draft, error: ValidationError) -> bool:
    """Move the values that an error is about to the notes; False if the error names none of them."""
    lines = validation_errors.format_validation_errors(error, Recipe, nest(draft.recipe))
    removed = False
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        keys = [key for key in draft.recipe if path == key or path.startswith(f"{key}.")]
        for key in keys:
            value = draft.recipe.pop(key)
            draft.remarks.pop(key, None)
            reason = next((line for line in lines if line.startswith(key)), lines[0])
            draft.note(key, value, f"not accepted: {reason}")
            removed = True
    if not removed:  # keys that contradict each other
        draft.problems = lines
    return removed
