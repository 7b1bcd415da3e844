"""The folders of images that a recipe names: checks, absolute paths, fingerprints. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from lorakit import manifest
from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe
from lorakit.core import dataset_paths
from lorakit.core.errors import ConfigError
from lorakit.core.path_kind import it_is
from lorakit.data import fingerprints

CLASS_KEY = "class_images"


def all_folders(recipe: Recipe) -> dict[str, Path]:
    """Return the folders of images by recipe key, that of the validation among them."""
    folder = recipe.validate_.folder
    return recipe.data_folders | ({"validate.folder": folder} if folder else {})


def check_data_folders(recipe: Recipe, out: Path) -> None:
    """Raise ConfigError for a folder that is missing, or inside of another one or of `out`."""
    folders = all_folders(recipe)
    for key, folder in folders.items():
        _check_disjoint(key, folder, out)
    for (key, folder), (other_key, other) in combinations(folders.items(), 2):
        one, two = _image_folder(folder), _image_folder(other)
        if one == two and (key.endswith(CLASS_KEY) or other_key.endswith(CLASS_KEY)):
            continue  # concepts of one class; the subject's images are refused by their captions
        where = f"{key}: {folder}, {other_key}: {other}"
        if one == two or one.samefile(two):
            raise ConfigError(
                "two keys name the same folder of images", where=where, remedy="give each a folder of its own"
            )
        if one.is_relative_to(two) or two.is_relative_to(one):
            raise ConfigError(
                "one of two folders of images is inside the other, so that its images would count twice",
                where=where,
                remedy="put the folders side by side",
            )


def _check_disjoint(key: str, folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"there is no such dataset folder{it_is(folder)}",
            where=f"{key}: {folder}",
            remedy="give the folder that holds your images",
        )
    target = out.resolve()
    for data in {folder.resolve(), _image_folder(folder)}:
        if not (target.is_relative_to(data) or data.is_relative_to(target)):
            continue
        raise ConfigError(
            "one of `out` and the dataset is inside the other",
            where=f"out: {out}, {key}: {folder}",
            remedy="choose two separate folders",
        )


def _image_folder(folder: Path) -> Path:
    """Return the folder of the images, which may be another one than that of the manifest."""
    return dataset_paths.image_folder(folder).resolve()


def absolute_data_folders(recipe: Recipe) -> dict[str, Any]:
    """Return the values of the recipe's keys that name folders of images, with absolute paths."""

    def absolute(path: Path | None) -> Path | None:
        return path.resolve() if path else None

    def moved(concept: Concept) -> Concept:
        paths = {"folder": concept.folder.resolve(), CLASS_KEY: absolute(concept.class_images)}
        return concept.model_copy(update=paths)

    dataset = recipe.dataset
    validate = recipe.validate_
    return {
        "dataset": tuple(map(moved, dataset)) if isinstance(dataset, tuple) else dataset.resolve(),
        CLASS_KEY: absolute(recipe.class_images),
        "validate_": validate.model_copy(update={"folder": absolute(validate.folder)}),
    }


def unprepared_concepts(recipe: Recipe) -> Iterator[Concept]:
    """Yield the folders that have to be prepared before training, with the words of their captions."""
    concepts = [*recipe.concepts, *class_concepts(recipe)]
    if validation := validation_concept(recipe):
        concepts.append(validation)
    for concept in concepts:
        if concept.folder.is_dir() and not (concept.folder / manifest.MANIFEST_FILE).exists():
            yield concept


def class_concepts(recipe: Recipe) -> list[Concept]:
    """Return the folders of class images, each once, as concepts without a trigger."""
    folders = {c.class_images: c.class_noun for c in recipe.concepts if c.class_images is not None}
    use = recipe.caption_use.for_class_images()
    return [Concept(folder=folder, class_noun=noun, caption_use=use) for folder, noun in folders.items()]


def validation_concept(recipe: Recipe) -> Concept | None:
    """Return `validate.folder` as a concept; None if the recipe has none.

    Captions that are missing there are written as those of the dataset, if it has one concept.
    """
    folder, concepts = recipe.validate_.folder, recipe.concepts
    if folder is None:
        return None
    if len(concepts) > 1:
        return Concept(folder=folder, caption_use=recipe.caption_use)
    keys = ("trigger", "class_noun", "captions", "caption_use")
    return Concept(folder=folder, **{key: getattr(concepts[0], key) for key in keys})


def possible_fingerprints(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Return, by recipe key, the fingerprints of the folders that decide the adapter.

    Several are possible: which one is that of the run depends on the base model.
    """
    return {
        key: fingerprints.dataset_fingerprints([r for r in manifest.load_manifest(folder) if r.keep])
        for key, folder in recipe.data_folders.items()
    }


def has_same_data(recipe: Recipe, inputs: Mapping[str, Any]) -> bool:
    """Return True if the folders of a recipe hold what the run with these `inputs` was trained on."""
    fingerprints = possible_fingerprints(recipe)
    recorded = {key for key in inputs if key.startswith(("dataset", CLASS_KEY))}
    return recorded == fingerprints.keys() and all(inputs[key] in fingerprints[key] for key in recorded)
