"""The text of an imported recipe: YAML with a remark on what changed, and the settings without an equal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from lorakit.config.recipe_import.checked_tree import REQUIRED, missing_keys
from lorakit.config.recipe_import.draft import Draft

_WIDTH = 110


def recipe_text(tree: dict[str, Any], draft: Draft, trainer: str, name: str) -> str:
    """Return the YAML of a recipe made from `name`, a configuration of `trainer`."""
    lines = [f"# Made from {name}, a configuration of {trainer}, by `lorakit recipe import`."]
    lines += [line for problem in draft.problems for line in _comment(f"To solve: {problem}")]
    lines.append("")
    lines += [f"{key}:  # {REQUIRED[key]}" for key in missing_keys(tree)]
    lines += _section(tree, draft.remarks, "", 0)
    for needed, title in ((True, "Settings without an equal"), (False, "Settings that are not needed here")):
        notes = [note for note in draft.notes if note.needed is needed]
        lines += ["", f"# {title}:"] if notes else []
        for note in notes:
            reason = f": {note.text}" if note.text else ""
            lines += _comment(f"{note.setting} = {_flow(note.value)}{reason}", "#   ")
    if draft.off:
        lines += ["", *_comment(f"Off in the file, and left out: {', '.join(sorted(set(draft.off)))}")]
    return "\n".join(lines) + "\n"


def _section(tree: dict[str, Any], remarks: dict[str, str], prefix: str, depth: int) -> Iterator[str]:
    margin = "  " * depth
    for key, value in tree.items():
        if remark := remarks.get(prefix + key):
            yield from _comment(remark, f"{margin}# ")
        if isinstance(value, dict) and value:
            yield f"{margin}{key}:"
            yield from _section(value, remarks, f"{prefix}{key}.", depth + 1)
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            yield f"{margin}{key}:"
            yield from (f"{margin}  - {_flow(entry)}" for entry in value)
        else:
            yield f"{margin}{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, start: str = "# ") -> list[str]:
    rest = " " * (len(start) - len(start.lstrip())) + "#" + " " * (len(start.lstrip()) + 1)
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
