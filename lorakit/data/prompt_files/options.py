"""Options behind a prompt: of kohya's scripts, ai-toolkit, A1111's "Prompts from file" and Midjourney."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorakit.core import prompt_syntax
from lorakit.core.prompt_syntax import PromptOption
from lorakit.data.prompt_files.keys import OPTION_NAME, REFUSED, UNUSED_NAMES, no_place, one_value
from lorakit.data.prompt_files.row import Values

# In a prompt with one of these, --s is Midjourney's stylize, --c its chaos, and --w without --h its weird.
_MIDJOURNEY = frozenset(
    [
        "ar",
        "aspect",
        "v",
        "version",
        "niji",
        "stylize",
        "chaos",
        "q",
        "quality",
        "style",
        "iw",
        "sref",
        "cref",
        "sw",
        "cw",
        "tile",
        "weird",
        "raw",
    ]
)
_IMAGINE = re.compile(r"^/imagine\s+(?:prompt:)?\s*", re.IGNORECASE)
_JOB = re.compile(r"\s*Job ID: [0-9a-f-]{36}\s*$", re.IGNORECASE)


def with_options(values: Values, where: str) -> tuple[Values, tuple[str, ...]]:
    """Return the values with the options behind the prompt as keys, and the options that are not used.

    Raises DataError for an option that is unknown, or that a prompt cannot have.
    """
    text = values.get("prompt")
    if not isinstance(text, str):
        return values, ()
    prompt, options = prompt_syntax.split_options(_JOB.sub("", _IMAGINE.sub("", text)))
    names = {option.name for option in options}
    is_midjourney = bool(names & _MIDJOURNEY)
    collected: dict[str, list[object]] = {"prompt": [prompt]} if prompt else {}
    unused = []
    for option in options:
        name = _meaning(option.name, names) if is_midjourney else option.name
        if name in UNUSED_NAMES:
            unused.append(f"--{option.name}")
        elif name in OPTION_NAME and name not in REFUSED:
            collected.setdefault(OPTION_NAME[name], []).append(option.value)
        else:
            written = _unknown(options, name)
            raise no_place(written, name, where)
    for key, texts in collected.items():
        if key != "prompt" and values.get(key):
            texts.append(values[key])
    read = {key: one_value(key, texts, where) for key, texts in collected.items()}
    return values | {"prompt": ""} | read, tuple(unused)


def _meaning(name: str, names: set[str]) -> str:
    """Return the name of an option in a prompt for Midjourney."""
    if name == "w":
        return "w" if "h" in names else "weird"
    return {"s": "stylize", "c": "chaos"}.get(name, name)


def _unknown(options: Sequence[PromptOption], first: str) -> str:
    """Return the options that are refused for the same reason as the first, in their own spelling."""
    reason = REFUSED.get(first)
    same = [
        option
        for option in options
        if REFUSED.get(option.name) == reason
        and (reason or (option.name not in OPTION_NAME and option.name not in UNUSED_NAMES))
    ]
    return ", ".join(f"--{option.name} {option.value}".strip() for option in same)
