"""Plain words for values that a recipe does not accept, instead of pydantic's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorakit.core.nearest import did_you_mean

Item = Mapping[str, Any]
"""One error of pydantic: type, loc, input, ctx."""

EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
"""The type that a value should have, by the kind of the error."""

_HINTS_FOR_ZERO = {
    "optimizer.lr": "to train the text encoders alone, set adapter.denoiser and adapter.text_encoder",
    "adapter.text_encoder_lr": "to leave the text encoders untrained, leave text_encoder and this key out",
    "textual_inversion.lr": "to train no new token, leave textual_inversion out",
}
_PATTERNS = {
    "^[a-z0-9][a-z0-9-]*$": "must be of lower-case letters, digits and hyphens, and not begin with a hyphen",
}


def describe(item: Item, key: str) -> str | None:
    """Return the problem of a value in plain words; None for kinds that have words of their own."""
    kind, value, ctx = item["type"], item["input"], item.get("ctx", {})
    if kind in EXPECTED:
        unquoted = "; write it without quotes" if _is_quoted(kind, value) else ""
        return f"{short_repr(value)} is not {EXPECTED[kind]}{unquoted}"
    if kind == "finite_number" or _is_nan(value):
        return f"{value!r} is not a finite number"
    if kind in ("too_short", "too_long") and isinstance(value, str):
        kind = f"string_{kind}"
    if kind in _LIMITS:
        text = f"{short_repr(value)} {_LIMITS[kind](ctx)}"
        hint = _HINTS_FOR_ZERO.get(key) if value == 0 else None
        return f"{text}; {hint}" if hint else text
    if kind == "string_pattern_mismatch":
        return (
            f"{short_repr(value)} {_PATTERNS.get(ctx['pattern'], 'does not have the form ' + ctx['pattern'])}"
        )
    return None


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def short_repr(value: Any) -> str:
    """Return the value as Python writes it, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_LIMITS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda ctx: f"is too small: it must be above {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"is too small: it must be at least {ctx['ge']:g}",
    "less_than": lambda ctx: f"is too large: it must be below {_number(ctx['lt'])}",
    "less_than_equal": lambda ctx: f"is too large: it must be at most {_number(ctx['le'])}",
    "multiple_of": lambda ctx: f"must be a multiple of {_number(ctx['multiple_of'])}",
    "too_short": lambda ctx: f"must have at least {_count(ctx['min_length'])}",
    "too_long": lambda ctx: f"must have at most {_count(ctx['max_length'])}",
    "string_too_short": lambda ctx: f"must have at least {ctx['min_length']} characters",
    "string_too_long": lambda ctx: f"must have at most {ctx['max_length']} characters",
}


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _count(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def _is_quoted(kind: str, value: Any) -> bool:
    """Return True for a number or a truth value that was written as text."""
    if not isinstance(value, str):
        return False
    if kind == "bool_type":
        return value.strip().lower() in ("true", "false")
    try:
        return kind in ("int_type", "float_type") and not math.isnan(float(value))
    except ValueError:
        return False


def join_union_branches(items: Sequence[Item], key_of: Callable[[Item], str]) -> list[Item | str]:
    """Return one problem for each value, where pydantic states one for each type that it may have.

    A branch that accepts the type of the value has the real problem. If none does, the types are listed.
    """
    keys = [key_of(item) for item in items]
    joined: list[Item | str] = []
    for item, key in zip(items, keys, strict=True):
        same = [other for other, its_key in zip(items, keys, strict=True) if its_key == key]
        inside = any(its_key.startswith(f"{key}.") for its_key in keys)
        others = [other for other in same if not _is_type_error(other)]
        if not _is_type_error(item) or (len(same) == 1 and not inside):
            joined.append(item)
        elif not inside and not others:
            joined.append(_none_of(same, key))
    return joined


def _is_type_error(item: Item) -> bool:
    return item["type"] in EXPECTED or item["type"] == "literal_error"


def _none_of(items: Sequence[Item], key: str) -> str:
    value = items[0]["input"]
    words = [word for item in items if item["type"] == "literal_error" for word in literal_words(item)]
    expected = list(dict.fromkeys([*words, *(EXPECTED[i["type"]] for i in items if i["type"] in EXPECTED)]))
    *first, last = ", ".join(expected).replace(" or ", ", ").split(", ")
    listed = f"{', '.join(first)} or {last}" if first else last
    nearest = did_you_mean(value, words) if isinstance(value, str) else ""
    return f"{key}: {short_repr(value)} is not {listed}{nearest}"


def literal_words(item: Item) -> list[str]:
    """Return the words that a value may be, from a `literal_error`."""
    text = str(item["ctx"]["expected"])
    return [part for number, part in enumerate(text.split("'")) if number % 2] or [text]
