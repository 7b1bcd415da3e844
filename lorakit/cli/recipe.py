"""`lorakit recipe import` and `lorakit recipe reference`."""

from __future__ import annotations

from pathlib import Path

import click

from lorakit.core.command_line import FILE, Group, LazyCommand, command, option, print_answer, print_text

COMMANDS = {
    "import": LazyCommand(
        "lorakit.cli.recipe:import_command", "Make a recipe from another trainer's configuration."
    ),
    "reference": LazyCommand(
        "lorakit.cli.recipe:reference_command", "Print the reference of recipe keys, files and exit codes."
    ),
}


@click.group("recipe", cls=Group, lazy=COMMANDS)
def recipe_group() -> None:
    """Recipes from other trainers, and the reference of recipe keys."""


@command(
    "import",
    click.argument("file", type=FILE, metavar="FILE",
                   help="A configuration (TOML, YAML, JSON), or a script with one training command."),
    option("--out", type=FILE, metavar="RECIPE",
           help="Write the recipe to this file, and the sample prompts beside it; by default print it."),
    example="lorakit recipe import kohya.toml --out recipe.yaml",
)  # fmt: skip
def import_command(file: Path, out: Path | None) -> None:
    """Make a recipe from another trainer's configuration.

    Reads files of sd-scripts, musubi-tuner, ai-toolkit, OneTrainer, SimpleTuner and diffusion-pipe, and
    command lines of these and of diffusers' scripts. Every setting is used, or named in a comment with the
    reason.
    """
    from lorakit.config.recipe_import import import_recipe
    from lorakit.core import storage
    from lorakit.core.errors import ConfigError

    imported = import_recipe(file)
    prompts = out.with_name(f"{out.stem}-prompts.jsonl") if out and imported.prompts else None
    for target in (out, prompts):
        if target and target.exists():
            raise ConfigError("the file exists already", where=str(target), remedy="name another with --out")
    text = imported.text(file.name, prompts)
    if prompts:
        storage.write_jsonl(prompts, imported.prompts)
    if out:
        storage.write_text(out, text)
    answer = {
        "trainer": imported.trainer,
        "recipe": imported.tree,
        "notes": [{"setting": n.setting, "value": n.value, "reason": n.text} for n in imported.notes],
        "off": sorted(set(imported.off)),
        "missing": list(imported.missing),
        "files": [str(path) for path in (out, prompts) if path],
    }
    print_answer(answer, None if out else text.removesuffix("\n"))
    if out:
        print_text(imported.summary(out))


@command(
    "reference",
    option("--out", type=FILE, metavar="FILE", help="Write the reference to this file instead."),
    answers=False,
    example="lorakit recipe reference --out examples/reference.md",
)
def reference_command(out: Path | None) -> None:
    """Print the reference of recipe keys, files and exit codes.

    Also describes environment variables and JSON answers.
    """
    from lorakit.cli.reference import reference_page
    from lorakit.core import storage

    page = reference_page()
    if out:
        storage.write_text(out, page)
    else:
        print(page, end="")
