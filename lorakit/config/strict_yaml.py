"""Strict YAML: text, decimal numbers, booleans, lists and mappings only.

PyYAML reads YAML 1.1, where `1e-4` is text, `010` is eight and `1:30` is ninety; here numbers are decimal,
and a date is text. Aliases (expansion bombs), tags, duplicate keys and keys that are not text are refused.
Recipes and prompt files are read by this loader.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lorakit.core import input_files
from lorakit.core.errors import ConfigError, DataError

SIZE_LIMIT = 256 << 10  # bytes; a recipe is a page, not a data set
_MAX_INTEGER_LENGTH = 21  # 64 bits have at most 20 digits, and a sign
MAX_DEPTH = 32  # lists and mappings inside each other
_NUMBER_PATTERNS = {
    "tag:yaml.org,2002:int": r"^[-+]?(0|[1-9]\d*)$",
    "tag:yaml.org,2002:float": r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$",
}
_PLAIN_TAGS = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with decimal numbers, without aliases, tags and duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - how PyYAML declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse an alias, a tag and deep nesting."""
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            raise _yaml_error(
                "aliases (*name) are not accepted; put text that begins with * in quotes", event
            )
        if getattr(event, "tag", None) is not None:
            raise _yaml_error("tags (!name) are not accepted; put text that begins with ! in quotes", event)
        if self.depth >= MAX_DEPTH:
            raise _yaml_error(f"more than {MAX_DEPTH} lists and mappings are inside each other", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

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


def _construct_integer(loader: StrictLoader, node: Any) -> int:
    """Construct an integer of at most 64 bits: a longer one can only be a mistake."""
    text = str(loader.construct_scalar(node))
    number = int(text) if len(text) <= _MAX_INTEGER_LENGTH else 1 << 64
    if not -(1 << 63) <= number < 1 << 64:
        raise _yaml_error(f"the integer {text[:24]}{'...' * (len(text) > 24)} has more than 64 bits", node)
    return number


StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_integer)


def _yaml_error(text: str, place: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, place.start_mark)


def read_yaml(path: str | Path) -> Any:
    """Parse a small UTF-8 file. Every error is one ConfigError that names the file."""
    return parse_yaml(input_files.read_text(path, SIZE_LIMIT, error=ConfigError), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text; `where` names it in errors."""
    loader = StrictLoader(_checked(text, where, ConfigError))
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {_one_problem(error)}", where=where) from error


def parse_yaml_list(text: str, where: str) -> list[tuple[int, Any]]:
    """Parse a YAML list as (line, item) pairs. Raises DataError, also if the text is not a list."""
    loader = StrictLoader(_checked(text, where, DataError))
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.SequenceNode):
            raise DataError("not a YAML list", where=where, remedy="start each item with '- '")
        # Nodes, not values, because nodes have line numbers.
        return [(node.start_mark.line + 1, loader.construct_object(node, deep=True)) for node in root.value]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"not valid YAML: {_one_problem(error)}", where=where) from error


def _checked(text: str, where: str, error: type[ConfigError | DataError]) -> str:
    """Return text that the loader can read in seconds, and that has no characters it would not accept."""
    if len(text.encode("utf-8", "surrogatepass")) > SIZE_LIMIT:
        remedy = "use a .jsonl file for more" if error is DataError else None
        raise error(f"the YAML text is larger than {SIZE_LIMIT >> 10} KiB", where=where, remedy=remedy)
    if match := yaml.reader.Reader.NON_PRINTABLE.search(text):
        raise error(f"not valid YAML: the character {ascii(match[0])[1:-1]} is not accepted", where=where)
    return text


def _one_problem(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
