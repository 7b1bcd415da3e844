"""`lorakit cache`: images and captions of a recipe, encoded before its training."""

from __future__ import annotations

import click

from data_tools import cli_options
from lorakit.core.command_line import command, is_quiet, option, print_answer


@command(
    "cache",
    click.argument("recipe", metavar="RECIPE", required=True,
                   help="A YAML file, or the name of a built-in recipe (see `lorakit recipes`)."),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...",
                   help="Keys of the recipe to change, for example dataset=photos."),
    option("--shard", metavar="I/N", help="Encode one part only, such as 1/8, on as many machines."),
    cli_options.ray_option("Encode on every GPU with Ray Data"),
    option("--verify", is_flag=True, help="Check the hash of every entry first, not only in changed files."),
    example="lorakit cache sd15 dataset=photos out=runs/dog --ray",
)  # fmt: skip
def cache_command(
    recipe: str, overrides: tuple[str, ...], shard: str | None, ray: str | None, verify: bool
) -> None:
    """Encode the images and captions of a recipe before its training, which then starts at once.

    `lorakit train` does this by itself, on one GPU; several GPUs or machines do it faster. They share the
    folder of the environment variable LORAKIT_CACHE.
    """
    from data_tools.prepare_for_training import prepare_for_training
    from lorakit.config.builtin_recipes import find_recipe
    from lorakit.config.recipe import load_recipe
    from lorakit.core.progress import print_line
    from lorakit.data import tensor_cache
    from lorakit.training.fill_caches import fill_caches
    from lorakit.training.start import prepare_training

    if shard and ray:
        raise click.UsageError("--shard and --ray both divide the work: leave one of them out")
    if verify:
        tensor_cache.check_everything_again()
    loaded = load_recipe(str(find_recipe(recipe)), list(overrides))
    prepare_training(loaded, prepare_for_training)
    result = fill_caches(loaded, print_line, ray_address=ray, shard=shard)
    print_answer(result.to_json(), None if is_quiet() else result.summary())
