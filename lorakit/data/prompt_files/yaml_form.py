"""YAML: a list of texts and mappings, or settings with a list `prompts`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorakit.config import strict_yaml
from lorakit.core.errors import ConfigError, DataError
from lorakit.data.prompt_files.document import tree_rows
from lorakit.data.prompt_files.row import PromptRow, PromptText

_ITEM = re.compile(r"-(?:\s|$)")
_SECTION = re.compile(r"(?:prompts?|samples?|items|data)\s*:\s*(?:#.*|\[.*|\|[-+]?|)")
_OWN_KEY = re.compile(
    r"(?:positive[ _]?)?(?:prompt|negative(?:[ _]prompt)?|seeds?)\s*:(?:\s.*|$)", re.IGNORECASE
)
_MAPPING = re.compile(r"""(?:[\w .-]+|"[^"]*"|'[^']*')\s*:(?:\s|$)""")


def is_yaml(source: PromptText) -> bool:
    """Return True if the first line begins a YAML list, a document, or a section of prompts."""
    first = source.first_line()
    if first == "---" or first.startswith("%YAML") or _SECTION.fullmatch(first) or _OWN_KEY.match(first):
        return True
    if source.suffix in (".yaml", ".yml"):
        return bool(_ITEM.match(first) or first.startswith(("[", "{")) or _MAPPING.match(first))
    lines = source.text.split("\n")
    top = [line for line in lines if line.strip() and not line[0].isspace() and not line.startswith("#")]
    return bool(top) and all(_ITEM.match(line) for line in top)


def read_yaml(source: PromptText) -> Iterator[PromptRow]:
    """Yield the prompts of a YAML text."""
    first = source.first_line()
    if first == "---" or _ITEM.match(first) or first.startswith("["):
        items = strict_yaml.parse_yaml_list(source.text, source.where)
        lines = [line for line, _ in items]
        yield from tree_rows([item for _, item in items], source.where, "YAML", lines)
        return
    try:
        tree = strict_yaml.parse_yaml(source.text, source.where)
    except ConfigError as error:
        raise DataError(error.message, where=source.where, remedy=error.remedy) from error
    if not isinstance(tree, dict):
        raise DataError("not a YAML list", where=source.where, remedy="start each item with '- '")
    yield from tree_rows(tree, source.where, "YAML")
