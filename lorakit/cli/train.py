"""`lorakit quickstart`, `train`, `resume` and `reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli.completion import complete_recipe_words, is_override
from lorakit.core.command_line import FOLDER, POSITIVE, command, option, print_answer

if TYPE_CHECKING:
    from lorakit.config.recipe import Recipe


def _suggest_recipe_key(name: str) -> str | None:
    """Return how to set a recipe key that was written as an option."""
    from lorakit.config.recipe import Recipe
    from lorakit.config.suggest_key import suggest_key
    from lorakit.config.validation_errors import known_keys

    key = suggest_key(name.lstrip("-"), known_keys(Recipe))
    return f"recipe keys are written as key=value, without dashes: {key}=..." if key else None


_num_processes = option(
    "--num-processes", type=POSITIVE, default=1, metavar="N", help="Number of processes, one for each GPU."
)


@command(
    "quickstart",
    option("--out", type=FOLDER, default="quickstart", metavar="DIR",
           help="Folder of the dataset, the run and the reports."),
    option("--base", type=click.Choice(["tiny-unet", "tiny-dit"]), default="tiny-dit",
           help="Embedded base model to train on."),
    option("--concept", type=click.Choice(["striped", "neon", "star", "moon"]), default="striped",
           help="Style or shape that the base model has not seen."),
    option("--steps", type=POSITIVE, metavar="N", help="Training steps; by default those of the recipe."),
    example="lorakit quickstart",
    answers=False,
)  # fmt: skip
def quickstart_command(out: Path, base: str, concept: str, steps: int | None) -> int:
    """Run a complete example on the embedded base model, offline, in minutes.

    Makes a dataset, prepares it, trains an adapter, exports it, compares images from before and after, and
    writes reports.
    """
    from lorakit.quickstart.quickstart import quickstart

    return quickstart(str(out), base=base, concept=concept, steps=steps)


@command(
    "train",
    click.argument("recipe", metavar="RECIPE", shell_complete=complete_recipe_words,
                   help="A YAML file, or the name of a built-in recipe (see `lorakit recipes`)."),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_recipe_words,
                   help="Keys of the recipe to change, for example optimizer.lr=2e-4."),
    _num_processes,
    example="lorakit train sd15 dataset=photos out=runs/dog optimizer.lr=2e-4",
    answers=False,
    suggest=_suggest_recipe_key,
)  # fmt: skip
def train_command(recipe: str, overrides: tuple[str, ...], num_processes: int) -> int:
    """Train from a recipe, or continue the run if it was interrupted.

    A folder of images that is not prepared yet is prepared first. The run is in the folder `out`; the same
    command continues it.
    """
    from lorakit.config.builtin_recipes import find_recipe
    from lorakit.config.recipe import load_recipe

    words = [recipe, *overrides]
    names = [word for word in words if not is_override(word)]
    if len(names) != 1:
        problem = f"more than one recipe: {', '.join(names)}" if names else "missing argument 'RECIPE'"
        raise click.UsageError(problem, click.get_current_context())
    words.remove(names[0])
    file = str(find_recipe(names[0]))
    return _train(load_recipe(file, words), file, words, num_processes)


@command(
    "resume",
    click.argument("run", type=FOLDER, metavar="RUN", help="The run's folder."),
    _num_processes,
    example="lorakit resume runs/dog",
    answers=False,
)
def resume_command(run: Path, num_processes: int) -> int:
    """Resume an interrupted run from its last checkpoint."""
    import json

    from lorakit.config.recipe import load_recipe
    from lorakit.training.run_folder import run_recipe_file

    file, overrides = run_recipe_file(run), [f"out={json.dumps(str(run))}"]
    return _train(load_recipe(file, overrides), file, overrides, num_processes)


@command(
    "reproduce",
    click.argument("run", type=FOLDER, metavar="RUN", help="Folder of a finished run."),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...",
                   help="New path of the dataset or base model, for example dataset=photos."),
    option("--out", type=FOLDER, metavar="DIR", help="Folder of the new run; by default RUN-reproduced."),
    example="lorakit reproduce runs/dog",
)  # fmt: skip
def reproduce_command(run: Path, overrides: tuple[str, ...], out: Path | None) -> int:
    """Train a finished run again and compare the weights byte for byte.

    The recipe stored in the run is used. The exit code is 6 if the weights differ.
    """
    from lorakit.config.recipe import load_recipe
    from lorakit.core.errors import NumericError
    from lorakit.training import reproduce

    out = out or run.with_name(f"{run.resolve().name}-reproduced")
    plan = reproduce.prepare_reproduction(run, out, list(overrides))
    recipe = load_recipe(plan.recipe_file, plan.overrides)
    if code := _train(recipe, plan.recipe_file, plan.overrides, plan.num_processes):
        return code
    result = reproduce.compare_runs(run, out)
    print_answer(result.to_json(), result.summary())
    return 0 if result.identical else NumericError.exit_code


def _train(recipe: Recipe, file: str, overrides: list[str], num_processes: int) -> int:
    """Prepare and train in child processes; answer at once if the run is finished."""
    from lorakit.training import start

    if adapter := start.finished_adapter(recipe, num_processes):
        print(f"this run is finished: {adapter}", file=sys.stderr)
        return 0
    return start.train_in_child(recipe, file, overrides, _prepare_folder, num_processes=num_processes)


def _prepare_folder(folder: Path, recipe: Recipe, trigger: str | None) -> None:
    from data_tools.prepare_for_training import prepare_for_training

    print(f"preparing {folder}", flush=True)
    prepare_for_training(folder, recipe, trigger)
