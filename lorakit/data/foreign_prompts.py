"""Prompts written for other tools: what has an equal here is read, anything else is refused with its line.

Text files for kohya's scripts (`a dog --n blurry --d 1`, lines with `#`), their TOML and JSON lists, the
placeholder `[trigger]`, and escaped parentheses.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorakit.core import prompt_syntax
from lorakit.core.errors import DataError
from lorakit.core.prompt_syntax import PromptOption
from lorakit.core.strict_json import parse_json

Row = dict[str, Any]
TEXT_KEYS = ("prompt", "score_text", "negative")
_EQUAL_KEYS = {"n": "negative", "nl": "negative", "negative_prompt": "negative", "negative": "negative"}
_EQUAL_KEYS |= {"d": "seeds", "seed": "seeds", "prompt": "prompt", "no": "negative"}
_SAME_FOR_ALL = (
    "size, number of steps, guidance and sampler are the same for all prompts",
    "remove it; the recipe (resolution, samples.num_inference_steps, samples.guidance_scale) or the options"
    " of `lorakit sample` set it",
)
_IMAGE = ("it is an image", "write the prompts as JSONL, with the image's path in the key `image`")
_ADAPTER = ("it is the strength of an adapter", "remove it, and give the strength as --adapter FILE:STRENGTH")
_SAME_NAMES = (
    "w h s l g ss f fs b bs ow oh ar aspect steps width height scale cfg_scale guidance_scale sampler"
    " sampler_name sample_sampler sample_steps scheduler frame_count batch_size discrete_flow_shift"
)
_REFUSED = dict.fromkeys(_SAME_NAMES.split(), _SAME_FOR_ALL)
_REFUSED |= dict.fromkeys(("i", "ei", "ci", "cn", "ctr", "controlnet_image", "image_path"), _IMAGE)
_REFUSED["am"] = _ADAPTER
_IGNORED = ("enum",)  # the number of a prompt, which kohya's scripts write themselves


def comment_lines(text: str) -> list[int]:
    """Return the numbers of the lines that are comments in a text file for kohya's scripts."""
    return [number for number, line in enumerate(text.split("\n"), 1) if line.lstrip().startswith("#")]


def read_json_list(text: str, where: str) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a JSON list of prompts: texts, or objects with the keys of kohya's scripts."""
    value = parse_json(text, where)
    if not isinstance(value, list):
        raise DataError("not a JSON list of prompts", where=where, remedy='write ["a dog", "a cat"]')
    yield from _entries(value, where)


def read_toml(text: str, where: str) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of kohya's TOML: shared keys in [prompt], a [[prompt.subset]] for each prompt."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"not valid TOML: {error}", where=where) from error
    shared = table.get("prompt") if list(table) == ["prompt"] else None
    subsets = shared.get("subset") if isinstance(shared, dict) else None
    if not isinstance(shared, dict) or not isinstance(subsets, list):
        remedy = 'write [[prompt.subset]] and prompt = "..." for each prompt'
        raise DataError("not a list of prompts as kohya's scripts read it", where=where, remedy=remedy)
    common = {key: value for key, value in shared.items() if key != "subset"}
    yield from _entries([common | one if isinstance(one, dict) else one for one in subsets], where)


def _entries(values: Sequence[Any], where: str) -> Iterator[tuple[int, Row]]:
    for number, value in enumerate(values, 1):
        place = f"{where}, entry {number}"
        if not isinstance(value, str | dict):
            raise DataError("a prompt must be a text or an object", where=place)
        yield number, {"prompt": value} if isinstance(value, str) else _with_own_keys(value, place)


def _with_own_keys(row: Mapping[str, Any], where: str) -> Row:
    """Return a row of kohya's scripts with the keys of lorakit; other keys stay, and are refused later."""
    own: Row = {}
    for key, value in row.items():
        if key in _IGNORED:
            continue
        if key in _REFUSED:
            raise _no_place(f"{key} = {str(value)[:40]}", key, where)
        name = _EQUAL_KEYS.get(key, key)
        if name in own:
            raise DataError(f"{name} is given twice", where=where, remedy="remove one of the two")
        own[name] = [value] if key == "seed" else value
    return own


def _no_place(text: str, name: str, where: str) -> DataError:
    reason, remedy = _REFUSED.get(name, ("it has no equal in lorakit", "remove it"))
    return DataError(f"{text} cannot be set in a prompt: {reason}", where=where, remedy=remedy)


# ---- syntax in texts ---------------------------------------------------------------------------------------


def read_syntax(row: Row, where: str, triggers: Sequence[str]) -> tuple[Row, list[str]]:
    """Return a row with the syntax of other tools read, and the uses that may be meant literally.

    Raises DataError for syntax that has no meaning here, with the remedy.
    """
    row = _with_options(row, where)
    doubtful = []
    for key in TEXT_KEYS:
        text = row.get(key)
        if not isinstance(text, str):
            continue  # checked later
        text = _with_trigger(prompt_syntax.unescape_parentheses(text), triggers, where)
        for use in prompt_syntax.find_syntax(text):
            if use.certain:
                raise DataError(
                    f"{use.text!r} is {use.kind.title}: lorakit would read it as plain words",
                    where=where,
                    remedy=use.kind.remedy,
                )
            doubtful.append(f"{use.text!r} looks like {use.kind.title}, and is read as plain words")
        row = row | {key: text}
    return row, doubtful


def _with_options(row: Row, where: str) -> Row:
    """Return the row with the options behind its prompt as keys."""
    text = row.get("prompt")
    if not isinstance(text, str):
        return row
    prompt, options = prompt_syntax.split_options(text)
    if refused := [option for option in options if option.name not in _EQUAL_KEYS]:
        raise _no_place(", ".join(f"--{o.name} {o.value}".strip() for o in refused), refused[0].name, where)
    row = row | {"prompt": prompt}
    for option in options:
        name = _EQUAL_KEYS[option.name]
        if row.get(name):
            raise DataError(
                f"--{option.name}: {name} is given twice", where=where, remedy="remove one of the two"
            )
        row[name] = _option_value(option, where) if name == "seeds" else option.value
    return row


def _option_value(option: PromptOption, where: str) -> list[int]:
    if not (option.value.isascii() and option.value.isdigit() and len(option.value) < 20):
        message = f"--{option.name} {option.value}: a seed is a whole number from 0"
        raise DataError(message, where=where, remedy=f"write for example --{option.name} 1")
    return [int(option.value)]


def _with_trigger(text: str, triggers: Sequence[str], where: str) -> str:
    """Return the text with the trigger word in place of `[trigger]`; without exactly one, a DataError."""
    if not prompt_syntax.has_trigger_placeholder(text):
        return text
    if len(triggers) != 1:
        problem = f"several are known: {', '.join(triggers)}" if triggers else "none is known here"
        remedy = "write the trigger word itself in the prompt"
        raise DataError(f"[trigger] stands for the trigger word, and {problem}", where=where, remedy=remedy)
    return prompt_syntax.fill_trigger(text, triggers[0])
