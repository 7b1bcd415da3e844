"""`lorakit sweep`: many adapters on one base model, and their comparison."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lorakit.cli.completion import complete_recipe_words
from lorakit.core.command_line import FOLDER, command, option


@command(
    "sweep",
    click.argument("recipe", metavar="RECIPE", shell_complete=complete_recipe_words,
                   help="A YAML file, or the name of a built-in recipe (see `lorakit recipes`)."),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_recipe_words,
                   help="Keys of the recipe to change, the same for all adapters."),
    option("--grid", multiple=True, required=True, metavar="KEY=V,V...",
           help="Values of a recipe key; with several keys, one adapter for each combination."),
    option("--out", type=FOLDER, metavar="DIR", help="Folder of the sweep; by default `out` of the recipe."),
    option("--accept-changes", is_flag=True,
           help="Continue members although settings, data, base model or software changed."),
    example="lorakit sweep sd15 dataset=photos --out dogs --grid adapter.rank=4,16 optimizer.lr=1e-4,3e-4",
    answers=False,
)  # fmt: skip
def sweep_command(
    recipe: str, overrides: tuple[str, ...], grid: tuple[str, ...], out: Path | None, accept_changes: bool
) -> int:
    """Train adapters with several values of recipe keys together on one base model.

    Each adapter is a run in a folder of its own, with the same result as alone. The same command continues
    an interrupted sweep.
    """
    from data_tools.prepare_for_training import prepare_for_training
    from lorakit.config.builtin_recipes import find_recipe
    from lorakit.config.recipe import load_recipe
    from lorakit.config.recipe_words import split_recipe_words
    from lorakit.core import launch
    from lorakit.training.start import prepare_training
    from lorakit.training.sweep import grid as grids

    words = [*grid, *(word for word in overrides if grids.is_axis(word))]
    name, shared = split_recipe_words([recipe, *(word for word in overrides if not grids.is_axis(word))])
    file = str(find_recipe(name))
    loaded = load_recipe(file, shared)
    folder = out or loaded.out
    members = grids.build_members(loaded, grids.parse_axes(words), folder)
    print(f"{len(members)} adapters: {', '.join(member.name for member in members)}", file=sys.stderr)
    prepare_training(members[0].recipe, prepare_for_training)
    arguments = [file, *shared, f"--out={folder}", *(f"--grid={word}" for word in words)]
    arguments += [launch.ACCEPT_CHANGES] if accept_changes else []
    return launch.run_training([sys.executable, "-m", "lorakit.training.sweep", *arguments])
