"""Mutations of bytes and of trees of values, drawn from one random generator."""

from __future__ import annotations

import json
import random
from typing import Any

TEXTS = (
    *(
        "",
        " ",
        "a" * 300,
        "é" * 120,
        "\U0001f600",
        "../../etc/passwd",
        "C:\\x",
        "https://a/b",
        "no",
        "null",
        "~",
    ),
    *(
        "1:30",
        "010",
        "0x1f",
        "1_000",
        "1e-4",
        ".inf",
        "2020-01-01",
        "=cmd()",
        "-",
        "{a|b}",
        "%s%n",
        "<b>",
        "[x]",
    ),
    *(
        "\x1b[2J\x1b]0;owned\x07",
        "a\u202etxt.exe",
        "\u2066x",
        "\x85",
        "a\0b",
        "\x7f",
        "con",
        "x\ny",
        "\ud800",
    ),
    *(
        "a.png",
        "b.png",
        "A.PNG",
        "sub/c.png",
        "a.png/",
        "./a.png",
        "sks",
        "a photo of sks dog",
        "re:((((",
        "*",
    ),
)
NUMBERS = (
    *(
        0,
        -1,
        1,
        2,
        255,
        65_536,
        10**9,
        2**31,
        2**32,
        2**53,
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        10**30,
    ),
    *(0.0, -0.0, 1e-308, 1e308, 0.5, 1.5, float("nan"), float("inf"), float("-inf"), True, False, None),
)


class Raw(str):
    """Text that stands in the JSON unchanged, such as a number of 5,000 digits."""


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return a value of any type."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice(
            (Raw("9" * 5000), Raw("1e99999"), Raw("-" * 3), nested(rng, rng.choice((5, 70, 3000, 40_000))))
        )
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def nested(rng: random.Random, depth: int) -> Raw:
    """Return lists or objects inside each other."""
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    return Raw(opening * depth + "1" + closing * rng.choice((depth, depth, 0)))


def change_tree(rng: random.Random, tree: Any) -> Any:
    """Return a copy of a tree with one to three nodes changed, removed, added or repeated."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _change_node(rng, tree, descend=0.97)
    return tree


def _change_node(rng: random.Random, tree: Any, descend: float = 0.75) -> Any:
    if isinstance(tree, dict) and tree and rng.random() < descend:
        pairs = list(tree.items())
        index = rng.randrange(len(pairs))
        key, item = pairs[index]
        action = rng.randrange(8)
        if action < 4:
            pairs[index] = (key, _change_node(rng, item))
        elif action == 4:
            del pairs[index]
        elif action == 5:
            pairs.insert(index, (rng.choice((key + "x", key[:-1], *TEXTS)), item))
        elif action == 6:
            return Pairs([*pairs, (key, value(rng))])
        else:
            pairs[index] = (key, value(rng))
        return dict(pairs)
    if isinstance(tree, Pairs):
        return tree
    if isinstance(tree, list) and tree and rng.random() < descend:
        items = list(tree)
        index = rng.randrange(len(items))
        items[index] = _change_node(rng, items[index])
        return items * rng.choice((1, 1, 1, 2, 200)) if rng.random() < 0.2 else items
    return value(rng)


class Pairs(list[tuple[str, Any]]):
    """The pairs of an object in which a key occurs twice."""


def dump(tree: Any) -> str:
    """Return JSON text of a tree, with doubled keys and raw text where the tree has them."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Pairs | dict):
        pairs = tree if isinstance(tree, Pairs) else tree.items()
        return "{" + ", ".join(f"{json.dumps(str(key))}: {dump(item)}" for key, item in pairs) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(dump, tree)) + "]"
    return json.dumps(tree, ensure_ascii=isinstance(tree, str) and "\ud800" in tree)


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with bits flipped, parts cut out, repeated, overwritten or inserted."""
    if not data:
        return data
    action = rng.randrange(9)
    place = rng.randrange(len(data))
    end = min(len(data), place + rng.choice((1, 4, 16, 300)))
    if action == 0:
        return data[:place]
    if action == 1:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 3, 40))):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if action == 2:
        return data[:place] + data[end:]
    if action == 3:
        return data[:place] + data[place:end] * rng.choice((2, 50, 2000)) + data[end:]
    if action == 4:
        return data[:place] + bytes([rng.choice((0, 255, 127, 128))]) * (end - place) + data[end:]
    if action == 5:
        inserted = (
            b"\xff",
            b"\0",
            b"\x1b[2J",
            b"\xed\xa0\x80",
            b"\xe2\x80\xae",
            b"\r",
            b"\n",
            b'"',
            b"\xef\xbb\xbf",
        )
        return data[:place] + rng.choice(inserted) + data[place:]
    if action == 6:
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(
            (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, len(data))
        )
        field = (number & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("little", "big")))
        return data[:place] + field + data[place + width :]
    if action == 7:
        return data + rng.choice((data, b"\0" * 999, b"\n" * 9))
    return rng.choice((b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16"), b"", data))


def change_text(rng: random.Random, text: str) -> bytes:
    """Return the bytes of a text, usually changed."""
    data = text.encode("utf-8", "surrogatepass")
    return change_bytes(rng, data) if rng.random() < 0.4 else data
