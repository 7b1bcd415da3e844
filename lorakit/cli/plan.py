"""`lorakit plan`: memory, time and cost of a run, before it starts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from lorakit.cli.completion import complete_recipe_words
from lorakit.core.command_line import command, option, print_answer
from lorakit.core.errors import ConfigError

if TYPE_CHECKING:
    from lorakit.config.recipe import Recipe
    from lorakit.planner.machine import Machine

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:gi?b|g)?\s*", re.IGNORECASE)


@command(
    "plan",
    click.argument("recipe", metavar="RECIPE", shell_complete=complete_recipe_words,
                   help="A YAML file, or the name of a built-in recipe (see `lorakit recipes`)."),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_recipe_words,
                   help="Keys of the recipe to change, for example resolution=768."),
    option("--gpu", metavar="NAME", help="Plan for this card, such as 'RTX 3060 12GB'."),
    option("--vram", metavar="SIZE", help="Plan for a card with this memory, such as 8GB."),
    option("--price", type=click.FloatRange(min=0), metavar="AMOUNT", help="Price of an hour, for the cost."),
    example=["lorakit plan flux1-dev --gpu 'RTX 3060 12GB'", "lorakit plan sdxl --vram 8GB --price 0.4"],
)  # fmt: skip
def plan_command(
    recipe: str, overrides: tuple[str, ...], gpu: str | None, vram: str | None, price: float | None
) -> int:
    """Predict memory, time and cost of a run, and choose its memory settings.

    No weights are loaded, and nothing is downloaded. Without --gpu and --vram the plan is for this machine.
    The exit code is 4 if nothing fits.
    """
    from lorakit.config.builtin_recipes import find_recipe
    from lorakit.config.recipe import load_recipe
    from lorakit.core import deferred_imports
    from lorakit.core.errors import MemoryLimitError

    if gpu and vram:
        raise click.UsageError("--gpu and --vram both choose a card: leave one of them out")
    deferred_imports.defer_imports()
    loaded = load_recipe(str(find_recipe(recipe)), list(overrides))
    machine = _machine(gpu, vram, loaded)
    from lorakit.training.run_forecast import forecast_run

    forecast = forecast_run(loaded, machine, price)
    print_answer(forecast.to_json(), forecast.summary())
    return 0 if forecast.choice.best.fits else MemoryLimitError.exit_code


def _machine(gpu: str | None, vram: str | None, recipe: Recipe) -> Machine:
    from lorakit.planner import cards, machine
    from lorakit.training.run_precision import choose_precision

    if gpu:
        card = cards.find_card(gpu)
        return machine.machine_of_card(card, choose_precision(recipe, card.platform, card.half).value)
    if vram is None:
        return machine.this_machine()
    size = _SIZE.fullmatch(vram)
    if not size or not 0 < float(size[1]) <= 1024:
        raise ConfigError(
            f"{vram!r} is not the memory of a card", where="--vram", remedy="give it in GB: --vram 8GB"
        )
    return machine.machine_with_memory(float(size[1]))
