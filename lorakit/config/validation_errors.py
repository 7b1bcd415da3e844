"""What a schema's refusal means to whoever wrote the file: one line a problem, with the nearest spelling."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def format_validation_errors(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each of pydantic's findings about a `root`, without repetition."""
    found = [dict(item) for item in error.errors()]
    told = [item for item in found if not _is_other_union_branch(item, found)]
    return list(dict.fromkeys(_error_line(item, root) for item in told or found))


def _is_other_union_branch(item: dict[str, Any], found: list[dict[str, Any]]) -> bool:
    """What the other branch of a union (a word or a section) says about a value that was not meant for it."""
    if item["type"] == "literal_error":
        return isinstance(item["input"], dict | list)
    words = [other["input"] for other in found if other["type"] == "literal_error"]
    return item["type"] in ("model_type", "list_type") and item["input"] in words


def _error_line(item: dict[str, Any], root: type[BaseModel]) -> str:
    given, kind = item["input"], item["type"]
    *above, last = (str(part) for part in item["loc"]) if item["loc"] else ("",)
    path = [part for part in above if not _is_branch(part)]
    if kind == "extra_forbidden" or not _is_branch(last):
        path.append(last)
    key = ".".join(path)
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1], root)
        return f"{key}: unknown key{did_you_mean(last, known) or _listed(known)}"
    if kind == "missing":
        return f"{key}: this key is required"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", item["ctx"]["expected"]) or [str(item["ctx"]["expected"])]
        return (
            f"{key}: {given!r} is not one of {', '.join(allowed)}{did_you_mean(str(given).strip(), allowed)}"
        )
    if kind in ("string_type", "path_type") and not isinstance(given, str | dict | list | None):
        return f"{key}: {given!r} is not read as text; put it in quotes"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (given: {given!r})" if key and not isinstance(given, dict) else message


def _is_branch(part: str) -> bool:
    """Pydantic names the branch of a union in the path: `memory.Memory.checkpoint`, `targets.list[str]`."""
    return re.search(r"^[A-Z]|\[", part) is not None


def _known_keys(path: list[str], root: type[BaseModel]) -> list[str]:
    section = root
    for part in path:
        field = next((f for n, f in section.model_fields.items() if part in (n, f.alias)), None)
        options = [field.annotation, *get_args(field.annotation)] if field else []
        found = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if found is None:
            return []
        section = found
    return [field.alias or name for name, field in section.model_fields.items()]


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _listed(known: list[str]) -> str:
    return f"; known: {', '.join(known)}" if known else ""
