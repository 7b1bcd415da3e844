"""`lorakit completion`, and the completion of recipe names and keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.core.command_line import command

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS = ("bash", "zsh", "fish", "powershell")


@command(
    "completion",
    click.argument("shell", type=click.Choice(SHELLS), help="Your shell."),
    example='eval "$(lorakit completion bash)"',
    answers=False,
)
def completion_command(shell: str) -> None:
    """Print the script that completes commands in a shell.

    \b
    bash:        add to ~/.bashrc:   eval "$(lorakit completion bash)"
    zsh:         add to ~/.zshrc:    eval "$(lorakit completion zsh)"
    fish:        lorakit completion fish > ~/.config/fish/completions/lorakit.fish
    PowerShell:  add to $PROFILE:    lorakit completion powershell | Out-String | Invoke-Expression

    It completes commands, options, recipe names, recipe keys and paths.
    """
    from click.shell_completion import get_completion_class

    from lorakit.cli.main import COMPLETION_VARIABLE, lorakit

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    print(completion_class(lorakit, {}, "lorakit", COMPLETION_VARIABLE).source())


def complete_recipe_words(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the words after `lorakit train`: first the recipe, then its keys, and paths as values."""
    from click.shell_completion import CompletionItem

    from lorakit.config.recipe_words import is_override

    words = [word for word in (ctx.params.get("recipe"), *(ctx.params.get("overrides") or ())) if word]
    if _is_value_of_split_word(words, incomplete):
        return [CompletionItem(incomplete, type="file")]
    if "=" in incomplete:
        key, _, start = incomplete.partition("=")
        return [CompletionItem(f"{key}={path}") for path in _matching_paths(start)]
    if any(not is_override(word) for word in words):
        return [CompletionItem(key) for key in _matching_keys(incomplete)]
    return [
        *_matching_recipes(incomplete),
        *map(CompletionItem, _matching_paths(incomplete, ".yaml", ".yml")),
    ]


def _is_value_of_split_word(words: list[str], incomplete: str) -> bool:
    """Return True after `key=` in bash, which splits words at "="; click removes a "=" at the cursor."""
    if words and words[-1] == "=":
        return True
    return not incomplete and len(words) > 1 and "=" not in words[-1] and words[-2] != "="


def _matching_keys(incomplete: str) -> list[str]:
    from lorakit.config.recipe import Recipe
    from lorakit.config.validation_errors import known_keys

    return [f"{key}=" for key in known_keys(Recipe) if key.startswith(incomplete)]


def _matching_recipes(incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from lorakit.config.builtin_recipes import builtin_recipes, describe_recipe

    recipes = builtin_recipes()
    return [
        CompletionItem(name, help=describe_recipe(file))
        for name, file in recipes.items()
        if name.startswith(incomplete)
    ]


def _matching_paths(incomplete: str, *suffixes: str) -> list[str]:
    """List folders and files, of these suffixes if any are given.

    Shells complete paths themselves, but not beside other words and not after `key=`.
    """
    folder, slash, start = incomplete.rpartition("/")
    try:
        entries = sorted(Path(folder + slash or ".").iterdir())
    except OSError:
        return []
    return [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(start)
        and entry.name.startswith(".") == start.startswith(".")
        and (entry.is_dir() or not suffixes or entry.suffix in suffixes)
    ]
