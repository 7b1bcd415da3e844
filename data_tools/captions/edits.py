"""Edits of captions: small pure functions, applied in order and recorded with the caption.

An edit is written as `name` or `name=value`:

    strip-preamble          "The image shows a dog." -> "A dog."
    replace=/PATTERN/TEXT/  a regular expression; any character may be used instead of the slash
    alias=cat:feline        tags renamed, several with commas
    drop=solo,1girl         tags removed
    dedupe                  repeated tags removed
    shuffle=2               tags shuffled except the first 2; the order depends only on the image
    max-sentences=2         the first 2 sentences
    max-words=60            the first whole sentences with at most 60 words together, at least one sentence
    prefix=TEXT  suffix=TEXT
    trigger=sks             "sks, " in front, unless the caption contains the word
    fill-trigger=sks        "[trigger]" and "{trigger}" become "sks"; done by itself for a given trigger word
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from lorakit.core import prompt_syntax, rng
from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean
from lorakit.core.words import has_word
from lorakit.manifest import Caption

Edit = Callable[[str, int], str]
"""(text, random seed of this image and caption) -> text"""

FILL_TRIGGER = "fill-trigger"
NONE = "none"  # on the command line: no edits, also none of the recorded ones
_IMAGE_PHRASE = r"(?:the|this) (?:image|picture|photo|photograph)"
_PREAMBLE = re.compile(
    r"^\s*(?:sure|certainly|of course|okay|ok)?[!,.:]?\s*"
    r"(?:here(?:'s| is) (?:a|the|an)[^:\n]{0,60}:\s*"
    rf"|(?:{_IMAGE_PHRASE}|it) (?:shows|depicts|features|captures|displays|is of)\s+"
    rf"|(?:in )?{_IMAGE_PHRASE},?\s+(?:there (?:is|are)|(?:we|you) can see|we see)\s+"
    r"|(?:caption|description)\s*:\s*)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r".*?(?:[.!?…。！？](?=[\"'”’)\]]*(?:\s|$))[\"'”’)\]]*|$)\s*", re.DOTALL)


def parse_edit(spec: str) -> Edit:
    """Return the function of an edit; `ConfigError` if it is unknown or its value is invalid."""
    name, _, value = spec.partition("=")
    if name in _EDITS and not value:
        return _EDITS[name]
    if name in _EDIT_FACTORIES and value:
        return _EDIT_FACTORIES[name](value)
    known = ", ".join([*_EDITS, *(f"{known}=..." for known in _EDIT_FACTORIES)])
    meant = did_you_mean(name, [*_EDITS, *_EDIT_FACTORIES])
    raise ConfigError(f"unknown edit {spec!r}{meant}", where="caption-edit", remedy=f"use {known}")


def check_edits(specs: Sequence[str]) -> None:
    """Raise `ConfigError` for the first edit that cannot work."""
    for spec in specs:
        parse_edit(spec)


def apply_edits(text: str, specs: Sequence[str], key: int = 0) -> str:
    """Apply all edits in order."""
    for spec in specs:
        text = parse_edit(spec)(text, key).strip()
    return text


def edit_caption(caption: Caption, specs: Sequence[str], file: str, caption_index: int) -> Caption:
    """Return the caption with these edits of its original text; without edits, the original text itself."""
    raw = caption.original_text if caption.original_text is not None else caption.text
    text = apply_edits(raw, specs, rng.derive_seed(0, "edit", file, caption_index))
    return replace(caption, text=text, original_text=raw if specs else None, edits=tuple(specs))


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences with their punctuation; a rest without punctuation is one, too."""
    return [sentence.strip() for sentence in _SENTENCE.findall(text) if sentence.strip()]


def whole_sentences(text: str) -> str:
    """Return the text without an incomplete last sentence; "" if no sentence is complete."""
    parts = split_sentences(text)
    if parts and not re.search(r"[.!?…。！？][\"'”’)\]]*$", parts[-1]):
        parts = parts[:-1]
    return " ".join(parts)


def strip_preamble(text: str) -> str:
    """Remove an introduction such as "The image shows ..." from a model's answer."""
    rest = _PREAMBLE.sub("", text, count=1).strip()
    return rest[:1].upper() + rest[1:] if rest and rest != text.strip() else text


def _tag_edit(change: Callable[[list[str], int], list[str]]) -> Edit:
    """Return an edit of comma-separated tags."""

    def edit(text: str, key: int) -> str:
        return ", ".join(change([tag.strip() for tag in text.split(",") if tag.strip()], key))

    return edit


def _dedupe(tags: list[str], key: int) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    return list(first.values())


def _drop(value: str) -> Edit:
    unwanted = {tag.strip().casefold() for tag in value.split(",")}
    return _tag_edit(lambda tags, key: [tag for tag in tags if tag.casefold() not in unwanted])


def _alias(value: str) -> Edit:
    pairs = [part.partition(":") for part in value.split(",")]
    if not all(old.strip() and new.strip() for old, _, new in pairs):
        raise ConfigError(
            f"alias={value} has no pair of tags", where="caption-edit", remedy="write alias=old:new,..."
        )
    names = {old.strip().casefold(): new.strip() for old, _, new in pairs}
    return _tag_edit(lambda tags, key: [names.get(tag.casefold(), tag) for tag in tags])


def _shuffle(value: str) -> Edit:
    keep = _parse_count("shuffle", value, minimum=0)

    def change(tags: list[str], key: int) -> list[str]:
        rest = tags[keep:]
        random.Random(key).shuffle(rest)
        return tags[:keep] + rest

    return _tag_edit(change)


def _max_sentences(value: str) -> Edit:
    count = _parse_count("max-sentences", value)
    return lambda text, key: " ".join(split_sentences(text)[:count])


def _max_words(value: str) -> Edit:
    max_words = _parse_count("max-words", value)

    def edit(text: str, key: int) -> str:
        kept: list[str] = []
        for part in split_sentences(text):
            if kept and len(" ".join([*kept, part]).split()) > max_words:
                break
            kept.append(part)
        return " ".join(kept)

    return edit


def _replace(value: str) -> Edit:
    parts = value[1:].split(value[0]) if value else []
    if len(parts) != 3 or parts[2]:
        raise ConfigError(
            f"replace={value} is not complete", where="caption-edit", remedy="write replace=/PATTERN/TEXT/"
        )
    try:
        pattern = re.compile(parts[0])
        pattern.sub(parts[1], "")
    except re.error as error:
        remedy = "see Python's re module; write \\ before special characters"
        raise ConfigError(f"replace={value}: {error}", where="caption-edit", remedy=remedy) from error
    return lambda text, key: pattern.sub(parts[1], text)


def _parse_count(name: str, value: str, minimum: int = 1) -> int:
    if not value.isdecimal() or int(value) < minimum:
        raise ConfigError(
            f"{name}={value} needs a number from {minimum}", where="caption-edit", remedy=f"write {name}=2"
        )
    return int(value)


def _trigger(value: str) -> Edit:
    return lambda text, key: text if has_word(text, value) else f"{value}, {text}"


_EDITS: dict[str, Edit] = {
    "strip-preamble": lambda text, key: strip_preamble(text),
    "dedupe": _tag_edit(_dedupe),
}
_EDIT_FACTORIES: dict[str, Callable[[str], Edit]] = {
    "replace": _replace,
    "alias": _alias,
    "drop": _drop,
    "shuffle": _shuffle,
    "max-sentences": _max_sentences,
    "max-words": _max_words,
    "prefix": lambda value: lambda text, key: value + text,
    "suffix": lambda value: lambda text, key: text + value,
    "trigger": _trigger,
    FILL_TRIGGER: lambda value: lambda text, key: prompt_syntax.fill_trigger(text, value),
}
