"""Everything that `lorakit train` does before the training process starts. Torch-free, but for sliders.

The Python API calls the same functions and then trains in its own process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from lorakit import manifest
from lorakit.config.recipe import Recipe, load_recipe, training_settings
from lorakit.core import launch
from lorakit.core.errors import LorakitError
from lorakit.models import base_model
from lorakit.training import run_folder
from lorakit.training.run_folder import RunFolder

PrepareFn = Callable[[Path, Recipe, str | None], object]
"""Called with (folder, recipe, trigger word) to prepare a plain folder of images."""


@dataclass(frozen=True)
class PlainFolder:
    """A folder of images without a manifest; class images have no trigger word."""

    path: Path
    trigger: str | None


def plain_folders(recipe: Recipe) -> Iterator[PlainFolder]:
    """Yield the folders of a recipe that have to be prepared before training."""
    for path, trigger in ((recipe.dataset, recipe.trigger), (recipe.class_images, None)):
        if path and path.is_dir() and not (path / manifest.MANIFEST_FILE).exists():
            yield PlainFolder(path, trigger)


def prepare_training(recipe: Recipe, prepare: PrepareFn) -> None:
    """Check the run's folder, fetch the base model, and prepare plain folders of images with `prepare`.

    A slider without a dataset generates its images first. Raises ConfigError or DataError.
    """
    if recipe.slider:
        from lorakit.training import slider

        slider.generate_slider_images(recipe)
    RunFolder(recipe.out).check_paths(recipe)
    base_model.resolve_base(recipe.base)
    for folder in plain_folders(recipe):
        prepare(folder.path, recipe, folder.trigger)


def train_in_child(
    recipe: Recipe, file: str, overrides: list[str], prepare: PrepareFn, *, num_processes: int = 1
) -> int:
    """Prepare and train a recipe in child processes; return their exit code.

    `file` and `overrides` are what `recipe` was loaded from. The child stays free of what this process has
    imported, and signals are forwarded to it.
    """
    prepare_training(recipe, prepare)
    return launch.run_training(launch.training_command(file, overrides, num_processes=num_processes))


def finished_adapter(recipe: Recipe, num_processes: int = 1) -> Path | None:
    """Return the adapter of a finished run of this recipe, or None if there is something to train.

    Also None if the run was trained with other settings, software or inputs: the training process then
    refuses, and names the differences. Base model and initial adapter are compared by path, because hashing
    them takes long.
    """
    run = RunFolder(recipe.out)
    with contextlib.suppress(LorakitError, OSError, KeyError, TypeError, PackageNotFoundError):
        record = run.record()
        if (
            record["status"] == "done"
            and run.adapter_file.is_file()
            and record["settings"] == training_settings(recipe)
            and record["versions"] == run_folder.package_versions()
            and int(record["inputs"]["num_processes"]) == num_processes
            and _has_same_inputs(recipe, record["inputs"])
        ):
            return run.adapter_file
    return None


def _has_same_inputs(recipe: Recipe, inputs: Mapping[str, str]) -> bool:
    stored = load_recipe(run_folder.run_recipe_file(recipe.out))
    folders = {"dataset": recipe.dataset, "class_images": recipe.class_images}
    fingerprints = {key: _fingerprint(folder) for key, folder in folders.items() if folder}
    init_from = recipe.init_from.resolve() if recipe.init_from else None
    same_base = recipe.base == stored.base or stored.base.startswith(f"{recipe.base}@")
    return (
        (same_base or base_model.absolute_spec(recipe.base) == stored.base)
        and init_from == stored.init_from
        and all(inputs.get(key) == value for key, value in fingerprints.items())
    )


def _fingerprint(folder: Path) -> str:
    return manifest.dataset_fingerprint([record for record in manifest.load_manifest(folder) if record.keep])
