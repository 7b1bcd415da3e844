"""`lorakit recipe reference`."""

from __future__ import annotations

from pathlib import Path

import click

from lorakit.core.command_line import FILE, Group, LazyCommand, command, option

COMMANDS = {
    "reference": LazyCommand(
        "lorakit.cli.recipe:reference_command", "Print the reference of recipe keys, files and exit codes."
    )
}


@click.group("recipe", cls=Group, lazy=COMMANDS)
def recipe_group() -> None:
    """Information about recipes and their keys."""


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
