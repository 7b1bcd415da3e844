"""Files of other trainers read as plain values: YAML, JSON, TOML and command lines."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorakit.config.recipe_import.draft import switch_value
from lorakit.core import input_files, strict_json
from lorakit.core.errors import ConfigError, LorakitError

SIZE_LIMIT = 1 << 20  # bytes of a configuration
_MAX_SETTINGS = 5000
_SCRIPT = re.compile(r"\S+\.py\b")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Source:
    """The content of a configuration, and the script of a command line."""

    path: Path
    tree: Any
    script: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by dotted names, with the dashes of options replaced by underscores."""
        return flatten(self.tree)

    def read_beside(self, name: Any) -> Any:
        """Return the content of a file that the configuration names; None if it is not there.

        A relative path is tried from the working folder, then from the configuration's.
        """
        if not isinstance(name, str) or not name:
            return None
        for path in (Path(name).expanduser(), self.path.parent / name, self.path.parent / Path(name).name):
            if path.is_file():
                return read_tree(path).tree
        return None


def read_tree(path: Path) -> Source:
    """Read a configuration or a script with one command line; ConfigError if it is neither."""
    text = input_files.read_text(path, SIZE_LIMIT, error=ConfigError)
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return Source(path, _parsed(path, "TOML", lambda: tomllib.loads(text)))
    if suffix == ".json" or text.lstrip().startswith(("{", "[{")):
        return Source(path, _parsed(path, "JSON", lambda: strict_json.parse_json(text, where=str(path))))
    if suffix in (".yaml", ".yml"):
        return Source(path, _parsed(path, "YAML", lambda: yaml.load(text, Loader=_Loader)))
    return _read_command(path, text)


def _parsed(path: Path, kind: str, parse: Any) -> Any:
    try:
        return parse()
    except LorakitError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"this is not valid {kind}: {reason}", where=str(path)) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, by which a small file could become huge."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted")
        return super().compose_node(parent, index)


def _read_command(path: Path, text: str) -> Source:
    """Read the options of the one training command in a shell script, batch file or text."""
    text = re.sub(r"[\\^`]\s*\n", " ", text.replace("\r\n", "\n"))
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|rem\b|::)", line, re.I)]
    commands = [line for line in lines if _SCRIPT.search(line) and "--" in line]
    if len(commands) != 1:
        problem = "several are in the file" if commands else "none starts a script (.py) with options"
        raise ConfigError(
            f"no training command can be read: {problem}",
            where=str(path),
            remedy="give a file with one training command, or the trainer's YAML, JSON or TOML file",
        )
    try:
        words = shlex.split(commands[0], comments=True, posix=path.suffix.lower() not in (".bat", ".cmd"))
    except ValueError as error:
        raise ConfigError(f"the command cannot be read: {error}", where=str(path)) from error
    words = [word.strip("\"',") for word in words]
    number = next((i for i, word in enumerate(words) if _SCRIPT.search(word)), 0)
    script = words[number].replace("\\", "/").rpartition("/")[2]
    return Source(path, read_options(words[number + 1 :]), script)


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Return `--name value`, `--name=value` and `--switch` as values; several values as a list."""
    options: dict[str, list[Any]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options.setdefault(name, []).extend([value] if equals else [])
        elif name is not None:
            options[name].append(word)
    return {
        name: True if not values else _value(values[0]) if len(values) == 1 else [_value(v) for v in values]
        for name, values in options.items()
    }


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return switch_value(text) if _NUMBER.fullmatch(text) and "e" not in text.lower() else text


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by dotted names; a list of plain values is one leaf."""
    settings: dict[str, Any] = {}
    for name, value in _leaves(tree, ""):
        settings[name] = value
        if len(settings) > _MAX_SETTINGS:
            raise ConfigError(f"the configuration has more than {_MAX_SETTINGS} settings")
    return settings


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            name = str(key).lstrip("-").replace("-", "_")
            yield from _leaves(value, f"{prefix}{name}.")
    elif isinstance(tree, list) and any(isinstance(entry, dict | list) for entry in tree):
        for number, entry in enumerate(tree):
            yield from _leaves(entry, f"{prefix}{number}.")
    else:
        yield prefix[:-1], tree
