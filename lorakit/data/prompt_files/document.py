"""Prompts in a tree of JSON, YAML or TOML: lists, shared settings with a list, and prompts by id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorakit.core.errors import DataError
from lorakit.data.prompt_files.keys import OWN_NAME, UNUSED_NAMES, own_values, plain_name, prompt_name
from lorakit.data.prompt_files.row import PromptRow

_LIST_NAMES = ("prompts", "prompt", "subset", "items", "data", "rows", "entries", "samples")
_WRAPPERS = ("sample", "samples", "prompt", "train", "config")  # sections around the list and its settings
# keys of a description, whose values are not prompts
_DESCRIPTION = frozenset(
    ["name", "title", "author", "version", "license", "url", "homepage", "date", "type", "format", "model"]
)
_REMEDY = (
    'write a list: ["a dog", "a cat"], or [{"prompt": "a dog", "seed": 1}], or prompts by id: '
    '{"dog": "a dog"}'
)


def tree_rows(value: Any, where: str, kind: str, lines: Sequence[int] = ()) -> Iterator[PromptRow]:
    """Yield the prompts of a tree; `lines` are the lines of a list's items, where they are known.

    Raises DataError for a tree that is not understood; `kind` names its format.
    """
    if isinstance(value, list):
        yield from _list_rows(value, {}, where, lines)
        return
    if not isinstance(value, dict):
        raise DataError(f"not a {kind} list of prompts", where=where, remedy=_REMEDY)
    if _is_prompt(value):
        yield _row(value, "entry 1", f"{where}, entry 1")
        return
    listed = _shared_list(value)
    if listed:
        yield from _list_rows(listed[0], listed[1], where, ())
        return
    yield from _rows_by_id(value, where, kind)


def _is_prompt(value: Any) -> bool:
    name = prompt_name(value) if isinstance(value, dict) else None
    return name is not None and isinstance(value[name], str)


def _shared_list(tree: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]] | None:
    """Return the list of prompts in a tree, and the settings that all of them share."""
    for name, value in tree.items():
        others = {key: other for key, other in tree.items() if key != name}
        is_known = all(plain_name(key) in {*OWN_NAME, *UNUSED_NAMES, "walk_seed"} for key in others)
        if isinstance(value, list) and plain_name(name) in _LIST_NAMES and is_known:
            return value, others
    for name in _WRAPPERS:
        inner = tree.get(name)
        if isinstance(inner, dict) and (len(tree) == 1) and (listed := _shared_list(inner)):
            return listed
    return None


def _list_rows(
    values: Sequence[Any], shared: Mapping[str, Any], where: str, lines: Sequence[int]
) -> Iterator[PromptRow]:
    unit = "line" if lines else "entry"
    walks = bool(shared.get("walk_seed"))  # of ai-toolkit: each prompt has the next seed
    common, unused = own_values({key: value for key, value in shared.items() if key != "walk_seed"}, where)
    for number, value in enumerate(values):
        place = f"{unit} {lines[number] if lines else number + 1}"
        here = f"{where}, {place}"
        if not isinstance(value, str | dict):
            message = "a prompt must be a string or a mapping"
            raise DataError(message, where=here, remedy="put the prompt in quotes")
        if isinstance(value, dict) and prompt_name(value) is None and not {"id"} & value.keys():
            _check_keys(value, here)
        row = _row({"prompt": value} if isinstance(value, str) else value, place, here)
        seed = common.get("seeds")
        own = {"seeds": seed + number} if walks and isinstance(seed, int) else {}
        yield replace(row, shared=common | own, unused=row.unused + (unused if number == 0 else ()))


def _check_keys(value: Mapping[str, Any], where: str) -> None:
    """Refuse a mapping that has none of the keys of a prompt."""
    known = {*OWN_NAME, *UNUSED_NAMES}
    if value and not any(plain_name(key) in known for key in value):
        names = ", ".join(map(repr, list(value)[:3]))
        remedy = 'name the text "prompt"; a prompt with a colon belongs in quotes'
        raise DataError(f"unknown key {names}, and no prompt", where=where, remedy=remedy)


def _row(value: Mapping[str, Any], place: str, where: str) -> PromptRow:
    values, unused = own_values(value, where)
    return PromptRow(place, values, unused)


def _rows_by_id(tree: Mapping[str, Any], where: str, kind: str) -> Iterator[PromptRow]:
    """Yield the prompts of a tree that maps ids to prompts, or to mappings with a prompt."""
    texts = all(isinstance(value, str) for value in tree.values())
    if keys := [key for key in tree if plain_name(key) in OWN_NAME]:
        message = f"the key {keys[0]!r} without a prompt"
        raise DataError(message, where=where, remedy='name the text "prompt"')
    if not tree or not (texts or all(_is_prompt(value) for value in tree.values())):
        raise DataError(_not_understood(tree, kind), where=where, remedy=_REMEDY)
    if texts and _DESCRIPTION & {plain_name(key) for key in tree}:
        raise DataError(_not_understood(tree, kind), where=where, remedy=_REMEDY)
    for number, (name, value) in enumerate(tree.items(), 1):
        place = f"entry {number}"
        own = {"prompt": value} if isinstance(value, str) else dict(value)
        yield _row({"id": name} | own, place, f"{where}, {place}")


def _not_understood(tree: Mapping[str, Any], kind: str) -> str:
    if any(isinstance(value, dict) and "class_type" in value for value in tree.values()) or (
        "nodes" in tree and "links" in tree
    ):
        return "a workflow of ComfyUI, which is not a list of prompts"
    names = ", ".join(map(repr, list(tree)[:3]))
    return f"not a {kind} list of prompts: a mapping with {names or 'no keys'}"
