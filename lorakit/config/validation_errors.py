"""Readable validation errors: one line for each problem in a recipe, with the nearest valid spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lorakit.config import plain_words
from lorakit.config.epochs import explain_epochs
from lorakit.config.other_trainers import EPOCH_NAMES, OTHER_SWITCHES
from lorakit.config.suggest_key import explain_setting, suggest_key
from lorakit.core.nearest import did_you_mean

_TYPE_NAMES = ("bool", "int", "float", "constrained-int", "constrained-float", "str", "literal")


def format_validation_errors(
    error: ValidationError, root: type[BaseModel], tree: Mapping[str, Any]
) -> list[str]:
    """Format each of pydantic's errors about the model `root` as one line, without repetition.

    `tree` is what was validated, as plain values.
    """
    items = [dict(item) for item in error.errors()]
    relevant = [item for item in items if not _is_other_union_branch(item, items)]
    problems = plain_words.join_union_branches(relevant or items, _key)
    return list(dict.fromkeys(p if isinstance(p, str) else _error_line(p, root, tree) for p in problems))


def _is_other_union_branch(item: dict[str, Any], items: list[dict[str, Any]]) -> bool:
    """True for an error of the branch of a union (a word or a section) that the value was not meant for."""
    if item["type"] == "literal_error":
        same_key = any(_key(other) == _key(item) and other is not item for other in items)
        is_number = isinstance(item["input"], int | float) and not isinstance(item["input"], bool)
        return isinstance(item["input"], dict | list) or (is_number and same_key)
    words = [other["input"] for other in items if other["type"] == "literal_error"]
    return item["type"] in ("model_type", "list_type") and item["input"] in words


def _error_line(item: Mapping[str, Any], root: type[BaseModel], tree: Mapping[str, Any]) -> str:
    value, kind, path = item["input"], item["type"], _path(item)
    key = ".".join(path)
    if kind == "extra_forbidden":
        return _unknown_key_line(path, value, root, tree)
    if kind == "missing":
        if path and path[-1].isdigit():  # an entry of a list of fixed length
            return f"{'.'.join(path[:-1])}: entry {int(path[-1]) + 1} is missing (value: {value!r})"
        return f"{key}: this key is required"
    if kind == "literal_error":
        allowed = plain_words.literal_words(item)
        return (
            f"{key}: {value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value).strip(), allowed)}"
        )
    if kind in ("string_type", "path_type") and not isinstance(value, str | dict | list | None):
        return f"{key}: {value!r} is not read as text; put it in quotes"
    if words := plain_words.describe(item, key):
        return f"{key}: {words}" if key else words
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (value: {value!r})" if key and not isinstance(value, dict) else message


def _unknown_key_line(path: list[str], value: Any, root: type[BaseModel], tree: Mapping[str, Any]) -> str:
    key, last, known = ".".join(path), path[-1], known_keys(root)
    name = last.lower().replace("-", "_")
    if name in EPOCH_NAMES:
        meant = "steps" if path[:-1] == ["train"] else "train.steps"
        return f"{key}: unknown key; did you mean {meant!r}? {explain_epochs(value, tree)}"
    exact = explain_setting(last, None, known)
    if exact and exact.write is None:
        return f"{key}: unknown key; {exact.explanation}"
    if exact and exact.write and name in OTHER_SWITCHES and exact.write.partition("=")[0] != key:
        return f"{key}: unknown key; did you mean {exact.write!r}?"
    of_first = ".".join("0" if part.isdigit() else part for part in path)  # keys of a list are alike
    if suggestion := suggest_key(of_first, known):
        if of_first.startswith(f"{suggestion}.0."):  # a name of the list elsewhere: its first key is meant
            suggestion = next(one for one in known if one.startswith(f"{suggestion}.0."))
        in_section = suggestion.removeprefix(of_first[: -len(last)])
        return f"{key}: unknown key; did you mean {in_section!r}?"
    siblings = [name for name, _ in _fields(_section(path[:-1], root))]
    return f"{key}: unknown key" + (f"; known keys: {', '.join(siblings)}" if siblings else "")


def _key(item: Mapping[str, Any]) -> str:
    return ".".join(_path(item))


def _path(item: Mapping[str, Any]) -> list[str]:
    """Return the parts of the key that an error is about, without union branches."""
    *above, last = (str(part) for part in item["loc"]) if item["loc"] else ("",)
    path = [part for part in above if not _is_branch(part)]
    return [*path, last] if item["type"] == "extra_forbidden" or not _is_branch(last) else path


def _is_branch(part: str) -> bool:
    """True for a union branch, which pydantic names in the path: `memory.MemoryConfig.quantize`."""
    return re.search(r"^[A-Z]|\[", part) is not None or part in _TYPE_NAMES


def known_keys(root: type[BaseModel], prefix: str = "") -> list[str]:
    """Return all keys of a model with those of its sections, dotted: `optimizer`, `optimizer.lr`, ..."""
    keys = []
    for name, section in _fields(root):
        keys.append(prefix + name)
        keys += known_keys(section.model, f"{prefix}{name}.{section.index}") if section else []
    return keys


@dataclass(frozen=True)
class Section:
    """The model of a section; `index` is "0." if a key holds a list of such sections."""

    model: type[BaseModel]
    index: str = ""


def find_section(annotation: Any) -> Section | None:
    """Return the section that the type of a key allows, or the one of its list; None if it allows none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Section(annotation)
    options = (find_section(option) for option in get_args(annotation))
    section = next((option for option in options if option is not None), None)
    return replace(section, index="0.") if section and get_origin(annotation) in (list, tuple) else section


def _fields(model: type[BaseModel] | None) -> Iterator[tuple[str, Section | None]]:
    """Yield the key of each field, and its section if it is one."""
    for name, field in model.model_fields.items() if model else ():
        yield field.alias or name, find_section(field.annotation)


def _section(path: list[str], root: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for part in path:
        if not part.isdigit():
            section = dict(_fields(model)).get(part)
            model = section.model if section else None
    return model
