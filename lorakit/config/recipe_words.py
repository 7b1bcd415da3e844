"""The words of `lorakit train RECIPE [key=value ...]`: which is the recipe, and what a wrong word meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lorakit.config.suggest_key import Suggestion, explain_setting, suggest_key
from lorakit.core import platform
from lorakit.core.errors import ConfigError

_OVERRIDE = re.compile(r"^[^-=/\\][^=/\\]*=")
KEY_VALUE = "recipe keys are written as key=value, without dashes and spaces"


class RecipeWords(NamedTuple):
    """The name of a recipe, and overrides such as `train.steps=100`."""

    recipe: str
    overrides: list[str]


def is_override(word: str) -> bool:
    """Return True for a word of the form key=value that is not the path of a file."""
    return bool(_OVERRIDE.match(word)) and not Path(word).exists()


def split_recipe_words(words: Sequence[str]) -> RecipeWords:
    """Tell the recipe from the overrides, in any order; ConfigError if there is not exactly one recipe."""
    overrides = [word for word in words if is_override(word)]
    names = [word for word in words if not is_override(word)]
    if any(word.startswith("=") for word in names) or (
        len(names) > 1 and any(word.endswith("=") for word in words)
    ):
        joined = re.sub(r"\s*=\s*", "=", " ".join(words))
        raise ConfigError("a key and its value are separated", remedy=f"write them as one word: {joined}")
    if not names:
        raise ConfigError("missing argument 'RECIPE'", remedy="lorakit train --help")
    for name, value in zip(names, [*names[1:], None], strict=True):
        if len(names) > 1 and not _is_recipe(name) and (meant := _meant_key(name, value)):
            raise ConfigError(f"{name!r} is not a recipe; did you mean {meant!r}?", remedy=KEY_VALUE)
    if len(names) > 1:
        remedy = f"name one recipe; {KEY_VALUE}"
        raise ConfigError(f"more than one recipe: {', '.join(names)}", remedy=remedy)
    return RecipeWords(names[0], overrides)


def _is_recipe(name: str) -> bool:
    from lorakit.config.builtin_recipes import builtin_recipes

    return Path(name).exists() or name in builtin_recipes()


def _meant_key(name: str, value: str | None) -> str | None:
    """Return `key=value` for words such as `steps 100` and `steps:100`."""
    key, _, rest = name.partition(":")
    suggestion = explain_setting(key, rest or value, _known_keys())
    return suggestion.write if suggestion else None


def explain_option(option: str, words: Sequence[str], *, similar: bool = False) -> Suggestion | None:
    """Return what to write instead of an unknown option of `lorakit train`, among these words.

    With `similar`, the recipe key with the nearest name is suggested, too.
    """
    known, name = _known_keys(), option.strip("-").partition("=")[0]
    value = _value_of(option, words)
    suggestion = explain_setting(name, value, known)
    if suggestion and suggestion.explanation and suggestion.write:
        return Suggestion(suggestion.write, _explain_epochs(value, words))
    if suggestion is None and similar and (key := suggest_key(name, known)):
        suggestion = Suggestion(f"{key}={'...' if value is None else value}")
    return suggestion and Suggestion(suggestion.write, suggestion.explanation or KEY_VALUE)


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the value of an option: after "=", or the next word."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        name, equals, value = word.partition("=")
        if name == option.partition("=")[0]:
            if equals:
                return platform.quote_argument(value)
            is_value = not is_override(following) and not re.match(r"-\D", following) and following != "-"
            return platform.quote_argument(following) if is_value else None
    return None


def _explain_epochs(epochs: str | None, words: Sequence[str]) -> str:
    from lorakit.config.epochs import explain_epochs
    from lorakit.config.recipe import read_recipe_tree
    from lorakit.core.errors import LorakitError

    names = [word for word in words if not word.startswith("-") and not is_override(word) and word != epochs]
    try:
        tree = read_recipe_tree(names[0], [word for word in words if is_override(word)]) if names else {}
    except LorakitError:
        tree = {}
    return explain_epochs(epochs, tree)


def _known_keys() -> list[str]:
    from lorakit.config.recipe import Recipe
    from lorakit.config.validation_errors import known_keys

    return known_keys(Recipe)
