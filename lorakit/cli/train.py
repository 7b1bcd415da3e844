"""`lorakit quickstart`, `train`, `resume` and `reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli.completion import complete_recipe_words
from lorakit.core.command_line import FOLDER, POSITIVE, command, option, print_answer, print_summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorakit.config.concepts import Concept
    from lorakit.config.recipe import Recipe
    from lorakit.config.suggest_key import Suggestion


def _suggest_recipe_key(option: str, words: Sequence[str], similar: bool) -> Suggestion | None:
    """Return what to write instead of an unknown option."""
    from lorakit.config.recipe_words import explain_option

    return explain_option(option, words, similar=similar)


_num_processes = option(
    "--num-processes", type=POSITIVE, metavar="N",
    help="Number of processes, one for each GPU; by default as before in this run, or 1.",
)  # fmt: skip
_accept_changes = option(
    "--accept-changes", is_flag=True,
    help="Continue a run although settings, data, base model or software changed; run.json records it.",
)  # fmt: skip


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
                   help="A YAML file, the name of a built-in recipe (see `lorakit recipes`), or a run."),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_recipe_words,
                   help="Keys of the recipe to change, for example optimizer.lr=2e-4."),
    _num_processes,
    _accept_changes,
    option("--extend", "extend_to", type=POSITIVE, metavar="STEPS",
           help="Train a run on, to STEPS steps in all; RECIPE is then the run's folder."),
    option("--fresh", is_flag=True,
           help="Start a new run; an earlier one in the folder `out` is renamed to OUT-old-1."),
    example=[
        "lorakit train sd15 dataset=photos out=runs/dog optimizer.lr=2e-4",
        "lorakit train runs/dog --extend 2000",
    ],
    answers=False,
    suggest=_suggest_recipe_key,
)  # fmt: skip
def train_command(
    recipe: str,
    overrides: tuple[str, ...],
    num_processes: int | None,
    accept_changes: bool,
    extend_to: int | None,
    fresh: bool,
) -> int:
    """Train from a recipe, or continue the run if it was interrupted.

    A folder of images that is not prepared yet is prepared first. The run is in the folder `out`; the same
    command continues it.
    """
    import json

    from lorakit.config.builtin_recipes import find_recipe
    from lorakit.config.recipe import load_recipe
    from lorakit.config.recipe_words import split_recipe_words
    from lorakit.core.errors import ConfigError
    from lorakit.training.run_folder import is_run_folder, run_recipe_file
    from lorakit.training.start import extension_overrides

    name, words = split_recipe_words([recipe, *overrides])
    run = Path(name)
    if extend_to is not None and fresh:
        raise click.UsageError("--extend continues a run, --fresh starts a new one: leave one of them out")
    if is_run_folder(run):
        words.append(f"out={json.dumps(str(run))}")
        words += extension_overrides(run, extend_to) if extend_to is not None else []
        file = run_recipe_file(run)
    elif extend_to is not None:
        remedy = f"lorakit train RUN --extend {extend_to}, with the folder of the run"
        raise ConfigError(f"--extend needs a run, and {name!r} is not one", remedy=remedy)
    else:
        file = str(find_recipe(name))
    loaded = load_recipe(file, words)
    return _train(loaded, file, words, num_processes, accept_changes=accept_changes, fresh=fresh)


@command(
    "resume",
    click.argument("run", type=FOLDER, metavar="RUN", help="The run's folder."),
    _num_processes,
    _accept_changes,
    example="lorakit resume runs/dog",
    answers=False,
)
def resume_command(run: Path, num_processes: int | None, accept_changes: bool) -> int:
    """Resume an interrupted run from its last checkpoint."""
    import json

    from lorakit.config.recipe import load_recipe
    from lorakit.training.run_folder import run_recipe_file

    file, overrides = run_recipe_file(run), [f"out={json.dumps(str(run))}"]
    loaded = load_recipe(file, overrides)
    return _train(loaded, file, overrides, num_processes, accept_changes=accept_changes)


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


def _train(
    recipe: Recipe,
    file: str,
    overrides: list[str],
    num_processes: int | None,
    *,
    accept_changes: bool = False,
    fresh: bool = False,
) -> int:
    """Prepare and train in child processes; answer at once if the run is finished."""
    from lorakit.training import start

    if num_processes is None:
        num_processes = 1 if fresh else start.recorded_num_processes(recipe.out)
    if fresh:
        file = start.start_fresh(recipe, file)
    elif adapter := start.finished_adapter(recipe, num_processes):
        print(f"this run is finished: {adapter}", file=sys.stderr)
        start.send_rest_to_tracker(recipe)
        return 0
    return start.train_in_child(
        recipe,
        file,
        overrides,
        _prepare_folder,
        num_processes=num_processes,
        accept_changes=accept_changes,
    )


def _prepare_folder(concept: Concept, recipe: Recipe) -> None:
    from data_tools.prepare_for_training import prepare_for_training

    print(f"preparing {concept.folder}", flush=True)
    print_summary(prepare_for_training(concept, recipe).summary)
