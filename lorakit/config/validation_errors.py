"""Readable validation errors: one line for each problem in a recipe, with the nearest valid spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lorakit.config.suggest_key import suggest_key
from lorakit.core.nearest import did_you_mean


def format_validation_errors(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Format each of pydantic's errors about the model `root` as one line, without repetition."""
    items = [dict(item) for item in error.errors()]
    relevant = [item for item in items if not _is_other_union_branch(item, items)]
    return list(dict.fromkeys(_error_line(item, root) for item in relevant or items))


def _is_other_union_branch(item: dict[str, Any], items: list[dict[str, Any]]) -> bool:
    """True for an error of the branch of a union (a word or a section) that the value was not meant for."""
    if item["type"] == "literal_error":
        return isinstance(item["input"], dict | list)
    words = [other["input"] for other in items if other["type"] == "literal_error"]
    return item["type"] in ("model_type", "list_type") and item["input"] in words


def _error_line(item: dict[str, Any], root: type[BaseModel]) -> str:
    value, kind = item["input"], item["type"]
    *above, last = (str(part) for part in item["loc"]) if item["loc"] else ("",)
    path = [part for part in above if not _is_branch(part)]
    if kind == "extra_forbidden" or not _is_branch(last):
        path.append(last)
    key = ".".join(path)
    if kind == "extra_forbidden":
        if suggestion := suggest_key(key, known_keys(root)):
            in_section = suggestion.removeprefix(key[: -len(last)])
            return f"{key}: unknown key; did you mean {in_section!r}?"
        siblings = [name for name, _ in _fields(_section(path[:-1], root))]
        return f"{key}: unknown key" + (f"; known keys: {', '.join(siblings)}" if siblings else "")
    if kind == "missing":
        return f"{key}: this key is required"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", item["ctx"]["expected"]) or [str(item["ctx"]["expected"])]
        return (
            f"{key}: {value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value).strip(), allowed)}"
        )
    if kind in ("string_type", "path_type") and not isinstance(value, str | dict | list | None):
        return f"{key}: {value!r} is not read as text; put it in quotes"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (value: {value!r})" if key and not isinstance(value, dict) else message


def _is_branch(part: str) -> bool:
    """True for a union branch, which pydantic names in the path: `memory.MemoryConfig.quantize`."""
    return re.search(r"^[A-Z]|\[", part) is not None


def known_keys(root: type[BaseModel], prefix: str = "") -> list[str]:
    """Return all keys of a model with those of its sections, dotted: `optimizer`, `optimizer.lr`, ..."""
    keys = []
    for name, section in _fields(root):
        keys.append(prefix + name)
        keys += known_keys(section, f"{prefix}{name}.") if section else []
    return keys


def _fields(model: type[BaseModel] | None) -> Iterator[tuple[str, type[BaseModel] | None]]:
    """Yield the key of each field, and the model of its section if it is one."""
    for name, field in model.model_fields.items() if model else ():
        options = [field.annotation, *get_args(field.annotation)]
        yield (
            field.alias or name,
            next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None),
        )


def _section(path: list[str], root: type[BaseModel]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = root
    for part in path:
        section = dict(_fields(section)).get(part)
    return section
