"""Everything that `lorakit train` does before the training process starts. Torch-free, but for sliders.

The Python API calls the same functions and then trains in its own process.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe, load_recipe, training_settings
from lorakit.core import launch, storage
from lorakit.core.errors import ConfigError, LorakitError
from lorakit.core.progress import print_line
from lorakit.models import base_model
from lorakit.training import (
    crashes,
    data_folders,
    run_changes,
    run_folder,
    run_identity,
    run_precision,
    run_results,
)
from lorakit.training.run_folder import RunFolder
from lorakit.training.trackers import send_rest
from lorakit.training.trackers.libraries import check_tracker

PrepareFn = Callable[[Concept, Recipe], object]
"""Called to prepare a concept's plain folder of images."""


def prepare_training(recipe: Recipe, prepare: PrepareFn) -> None:
    """Check the run's folder, fetch the base model, and prepare plain folders of images with `prepare`.

    A slider without a dataset generates its images first. Raises ConfigError or DataError.
    """
    check_tracker(recipe.tracker_config)
    if recipe.slider:
        from lorakit.models import device
        from lorakit.training import slider

        recipe = run_precision.with_precision(recipe)
        device.check_precision(device.default_device(), recipe.train.precision)
        slider.generate_slider_images(recipe)
    RunFolder(recipe.out).check_paths(recipe)
    base_model.resolve_base(recipe.base)
    for concept in data_folders.unprepared_concepts(recipe):
        prepare(concept, recipe)


def start_fresh(recipe: Recipe, file: str = "") -> str:
    """Rename an earlier run in the folder `out` to `OUT-old-1`, or the next free number, to start a new one.

    Returns the path of the recipe `file`, which may lie in that folder. Raises ConfigError if a process is
    working on the run.
    """
    run = RunFolder(recipe.out)
    if not run.exists:
        return file
    with run.lock():
        numbers = itertools.count(1)
        path = next(p for n in numbers if not (p := run.path.with_name(f"{run.path.name}-old-{n}")).exists())
    storage.rename_folder(run.path, path)
    print_line(f"the earlier run is now in {path}")
    inside = file and Path(file).resolve().parent == run.path.resolve()
    return str(path / Path(file).name) if inside else file


def train_in_child(
    recipe: Recipe,
    file: str,
    overrides: list[str],
    prepare: PrepareFn,
    *,
    num_processes: int = 1,
    accept_changes: bool = False,
) -> int:
    """Prepare and train a recipe in child processes; return their exit code.

    `file` and `overrides` are what `recipe` was loaded from. The child stays free of what this process has
    imported, and signals are forwarded to it.
    """
    run, recipe = RunFolder(recipe.out), run_precision.with_recorded_precision(recipe)
    run_changes.check_settings(run, recipe, num_processes, accept_changes=accept_changes)
    prepare_training(recipe, prepare)
    options = [launch.ACCEPT_CHANGES] if accept_changes else []
    command = launch.training_command(file, [*overrides, *options], num_processes=num_processes)
    return launch.run_training(command, functools.partial(crashes.record_end, recipe.out))


def recorded_num_processes(run: Path) -> int:
    """Return the number of processes that a run was trained with; 1 if it does not say."""
    with contextlib.suppress(LorakitError, OSError):
        return int(RunFolder(run).record()["inputs"]["num_processes"])
    return 1


def extension_overrides(run: Path, steps: int) -> list[str]:
    """Return the recipe overrides that extend a run to `steps` steps in all.

    With a constant schedule the longer run has the bytes of one that was started with `steps`. Any other
    schedule ends at the old last step and starts again there. Raises ConfigError if `steps` is not more than
    the run has.
    """
    recipe = load_recipe(run_folder.run_recipe_file(run))
    if steps < recipe.train.steps:
        raise ConfigError(
            f"this run has {recipe.train.steps} steps already, and --extend gives the number of steps in all",
            where=str(run),
            remedy=f"give a larger number, for example --extend {recipe.train.steps + steps}",
        )
    overrides = [f"train.steps={steps}"]
    same_rates = recipe.optimizer.schedule == "constant" and isinstance(recipe.optimizer.warmup, int)
    if steps > recipe.train.steps and not same_rates:
        starts = [*recipe.train.extended_at, recipe.train.steps]
        overrides.append(f"train.extended_at={json.dumps(starts)}")
    return overrides


def finished_adapter(recipe: Recipe, num_processes: int = 1) -> Path | None:
    """Return the adapter of a finished run of this recipe, or None if there is something to do.

    Also None if the run was trained with other settings or inputs, or if a result is missing or damaged: the
    training process then refuses, and names the differences, or writes the result again. Base model and
    initial adapter are compared by path, because hashing them takes long.
    """
    run = RunFolder(recipe.out)
    with contextlib.suppress(LorakitError, OSError, KeyError, TypeError):
        record = run.record()
        inputs = record["inputs"] | {"num_processes": num_processes}
        recipe = run_precision.with_recorded_precision(recipe)
        new = {"settings": training_settings(recipe), "inputs": inputs, "versions": record["versions"]}
        comparison = run_identity.compare_identities(record, new)
        if (
            run_changes.is_finished_with(record, comparison)
            and _has_same_inputs(recipe, record["inputs"])
            and not run_results.find_damaged_results(run, record, recipe.export)
        ):
            return run.adapter_file
    return None


def _has_same_inputs(recipe: Recipe, inputs: Mapping[str, str]) -> bool:
    stored = load_recipe(run_folder.run_recipe_file(recipe.out))
    init_from = recipe.init_from.resolve() if recipe.init_from else None
    same_base = recipe.base == stored.base or stored.base.startswith(f"{recipe.base}@")
    return (
        (same_base or base_model.absolute_spec(recipe.base) == stored.base)
        and init_from == stored.init_from
        and data_folders.has_same_data(recipe, inputs)
    )


def send_rest_to_tracker(recipe: Recipe) -> None:
    """Send what the recipe's tracker has not received of a finished run."""
    check_tracker(recipe.tracker_config)
    send_rest(recipe.tracker_config, recipe.out, RunFolder(recipe.out).log)
