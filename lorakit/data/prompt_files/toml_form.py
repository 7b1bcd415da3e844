"""TOML of kohya's scripts: shared settings in [prompt], and a [[prompt.subset]] for each prompt."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from lorakit.core.errors import DataError
from lorakit.data.prompt_files.document import tree_rows
from lorakit.data.prompt_files.row import PromptRow, PromptText

_HEADER = re.compile(r"\[{1,2}\s*[\w.\"-]+\s*\]{1,2}\s*(?:#.*)?")
_SETTING = re.compile(r"[\w.-]+\s*=\s*(?:[\"'\[{\d]|true\b|false\b).*")


def is_toml(source: PromptText) -> bool:
    """Return True if the text begins with a table or a setting of TOML."""
    first = source.first_line()
    if source.suffix == ".toml":
        return bool(re.match(r"\[|[\w.-]+\s*=", first))
    if _SETTING.fullmatch(first):
        return True
    return bool(_HEADER.fullmatch(first)) and any(_SETTING.fullmatch(line) for _, line in source.lines())


def read_toml(source: PromptText) -> Iterator[PromptRow]:
    """Yield the prompts of a TOML text."""
    try:
        tree = tomllib.loads(source.text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"not valid TOML: {error}", where=source.where) from error
    try:
        rows = list(tree_rows(tree, source.where, "TOML"))
    except DataError as error:
        if error.where != source.where:
            raise
        remedy = 'write [[prompt.subset]] and prompt = "..." for each prompt'
        message = "not a list of prompts as kohya's scripts read it"
        raise DataError(message, where=source.where, remedy=remedy) from error
    yield from rows
