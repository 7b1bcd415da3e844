"""Strict YAML: text, decimal numbers, booleans, lists and mappings only.

PyYAML reads YAML 1.1, where `1e-4` is text, `010` is eight and `1:30` is ninety; here numbers are decimal.
Aliases (expansion bombs), tags, duplicate keys and keys that are not text are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lorakit.core.errors import ConfigError

SIZE_LIMIT = 256 << 10  # bytes; a recipe is a page, not a data set
_NUMBER_PATTERNS = {
    "tag:yaml.org,2002:int": r"^[-+]?(0|[1-9]\d*)$",
    "tag:yaml.org,2002:float": r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$",
}


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with decimal numbers, without aliases and duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - how PyYAML declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBER_PATTERNS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse an alias."""
        if self.check_event(yaml.events.AliasEvent):
            raise _yaml_error("aliases (*name) are not accepted", self.peek_event())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; refuse duplicate keys and keys that are not text."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _yaml_error(f"the key {key!r} is not text; put it in quotes", key_node)
            if key in seen:
                raise _yaml_error(f"the key {key!r} occurs twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern in _NUMBER_PATTERNS.items():
    StrictLoader.add_implicit_resolver(_tag, re.compile(_pattern, re.IGNORECASE), list("-+0123456789."))


def _yaml_error(text: str, place: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, place.start_mark)


def read_yaml(path: str | Path) -> Any:
    """Parse a small UTF-8 file. Every error is one ConfigError that names the file."""
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    if len(data) > SIZE_LIMIT:
        raise ConfigError(f"the file is larger than {SIZE_LIMIT >> 10} KiB", where=str(path))
    try:
        return parse_yaml(data.decode("utf-8").removeprefix("\ufeff"), str(path))
    except UnicodeDecodeError as error:
        remedy = "save the file as UTF-8"
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=str(path), remedy=remedy) from error


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text; `where` names it in errors."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {error}", where=where) from error
