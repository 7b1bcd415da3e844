"""Strict JSON, for everything that lorakit reads: files, archives, answers of servers, metadata.

Python's parser lets the last of two equal keys win, accepts NaN, fails with RecursionError on deep nesting
and returns half characters (lone surrogates) that no file can store. Here each of these is a DataError that
names the place, and size and nesting are limited, so that a hostile text needs neither hours nor gigabytes.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from lorakit.core.errors import DataError

MAX_BYTES = 64 << 20  # bytes of one JSON text
MAX_DEPTH = 64  # lists and objects inside each other
MAX_VALUES = (
    8_000_000  # of about 50 bytes each; a list or object takes four times that, and counts four times
)
MAX_NUMBER_LENGTH = 400  # characters of a number with a fraction or an exponent
_MAX_INTEGER_LENGTH = 20  # 64 bits have at most 20 digits


def parse_json(
    text: str | bytes, where: str, *, remedy: str | None = None, allow_infinity: bool = False
) -> Any:
    """Parse a JSON text. Raises DataError, with `where` and `remedy`, for anything that is not plain JSON.

    Refused are duplicate keys, more than `MAX_DEPTH` levels, integers of more than 64 bits, numbers too large
    for a float, NaN, lone surrogates, and bytes that are not UTF-8. A byte order mark is skipped.
    `allow_infinity` accepts NaN and Infinity, which diffusers writes into configurations.
    """
    try:
        return _parse(_decode(text), _LENIENT_DECODER if allow_infinity else _DECODER)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        message = error.msg.removesuffix(" at")
        problem = f"{message[:1].lower()}{message[1:]} at {line}column {error.colno}"
    except RecursionError:
        problem = _TOO_DEEP
    except ValueError as error:
        problem = str(error)
    raise DataError(f"not valid JSON: {problem}", where=where, remedy=remedy)


_TOO_DEEP = f"more than {MAX_DEPTH} lists and objects are inside each other"


def _decode(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise ValueError(f"the text has {len(text) >> 20} MiB, at most {MAX_BYTES >> 20} are read")
    if isinstance(text, str):
        if not text.isascii():
            _check_characters(text)
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} (0x{text[error.start]:02x}) is not UTF-8") from error


def count_values(text: str | bytes) -> int:
    """Return about how many values of 50 bytes a text would take in memory; more for commas in strings."""
    if isinstance(text, bytes):
        return text.count(b",") + 4 * (text.count(b"{") + text.count(b"["))
    return text.count(",") + 4 * (text.count("{") + text.count("["))


def _parse(text: str, decoder: json.JSONDecoder) -> Any:
    if count_values(text) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES // 1_000_000} million values")
    if not text.strip():
        raise ValueError("the text is empty")
    value = decoder.decode(text)
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value)
    if "\\ud" in text or "\\uD" in text:  # usually the two halves of one character
        _check_characters(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return unique


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= _MAX_INTEGER_LENGTH else 1 << 64
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"the integer {digits[:24]}{'...' * (len(digits) > 24)} has more than 64 bits")
    return number


def _float(digits: str) -> float:
    number = float(digits) if len(digits) <= MAX_NUMBER_LENGTH else math.inf
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:24]}{'...' * (len(digits) > 24)} is too large or too long")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


_LENIENT_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_float)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(f"{half} is half a character (a lone surrogate)") from error
