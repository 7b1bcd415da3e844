"""The precision of a run whose recipe says `auto`: that of its record, else the one for this device.

It is decided before anything else of the recipe is used, and recorded: a run keeps its precision on every
machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lorakit.config.recipe import Recipe, change_recipe
from lorakit.models.precision import PrecisionChoice, automatic_precision
from lorakit.training.run_folder import RunFolder

AUTO, KEY = "auto", "train.precision"


def recorded_precision(run: Path) -> str | None:
    """Return the precision that a run was started with; None if there is no run yet. Needs no torch.

    Raises DataError for a damaged record.
    """
    folder = RunFolder(run)
    return folder.record()["settings"].get(KEY) if folder.exists else None


def with_recorded_precision(recipe: Recipe, run: Path | None = None) -> Recipe:
    """Return a recipe with the precision that its run was started with, if it says `auto`. Needs no torch.

    `run` is the folder of the run, by default `out`.
    """
    if recipe.train.precision != AUTO:
        return recipe
    return change_precision(recipe, recorded_precision(run or recipe.out))


def with_precision(recipe: Recipe, runs: Iterable[Path] | None = None) -> Recipe:
    """Return a recipe with a precision instead of `auto`: a recorded one, else that for this device.

    The first record in `runs` holds. `runs` are the folders that may have a record, by default `out`.
    """
    if recipe.train.precision != AUTO:
        return recipe
    recorded = (recorded_precision(run) for run in runs or [recipe.out])
    return change_precision(recipe, next(filter(None, recorded), None) or _for_this_device().value)


def choose_precision(recipe: Recipe, platform: str, preferred: str) -> PrecisionChoice:
    """Return the precision of a run on a device, with the reason: see `automatic_precision`."""
    if recipe.train.precision != AUTO:
        return PrecisionChoice(recipe.train.precision, "set in the recipe")
    if recorded := recorded_precision(recipe.out):
        return PrecisionChoice(recorded, f"the run in {recipe.out} was started with it")
    return automatic_precision(platform, preferred)


def _for_this_device() -> PrecisionChoice:
    from lorakit.models import device as devices

    device = devices.default_device()
    return automatic_precision(device.type, devices.supported_precisions(device)[0])


def change_precision(recipe: Recipe, precision: str | None) -> Recipe:
    """Return a recipe with this precision; the same for None."""
    return change_recipe(recipe, [f"{KEY}={precision}"]) if precision else recipe
