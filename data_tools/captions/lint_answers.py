"""Checks of what slipped through as a caption: markup of a model, one answer for many, another script."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from data_tools.captions.answers import UnusableAnswer, extract_description, find_markup
from data_tools.findings import Finding
from lorakit.manifest import Caption, Record

_MARKUP = frozenset({"reasoning", "chat markup", "JSON", "code block", "repetition"})
_SAME_ANSWERS = 3  # different images with one answer, from which the model may not see them
_MAIN_SCRIPT_SHARE = 0.8  # of the captions; the others are in another script than the set
_SCRIPT_SHARE = 0.6  # of the letters of a caption
_SCRIPTS = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA"), "Chinese or Japanese")


def answer_findings(records: Sequence[Record]) -> list[Finding]:
    """Return the findings on captions that look like answers of a model."""
    return [*_markup(records), *_same_answers(records), *_other_scripts(records)]


def has_markup(caption: Caption) -> bool:
    """Return True for a caption with markup; of a model's answer, also with reasoning, JSON or a loop."""
    if caption.source != "model":
        return find_markup(caption.text) is not None
    try:
        _, removed = extract_description(caption.original_text or caption.text)
    except UnusableAnswer:
        return True
    return bool(_MARKUP & set(removed))


def _markup(records: Sequence[Record]) -> Iterator[Finding]:
    marked = {r.file: c.text for r in records for c in r.captions if not r.tags and has_markup(c)}
    if marked:
        example = next(iter(marked.values()))[:60]
        message = f"markup, reasoning or an error of a model instead of a description alone: {example!r}"
        yield Finding("warning", "caption_markup", message, tuple(marked))


def _same_answers(records: Sequence[Record]) -> Iterator[Finding]:
    images: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        for caption in record.captions if not record.tags else ():
            if caption.source == "model":
                images[caption.text.casefold()].setdefault(record.content_hash, record.file)
    for text, files in images.items():
        if len(files) >= _SAME_ANSWERS:
            message = f"a model gave {len(files)} images one answer, and may not see them: {text[:60]!r}"
            yield Finding("warning", "captioner_same_answer", message, tuple(files.values()))


def _other_scripts(records: Sequence[Record]) -> Iterator[Finding]:
    scripts = {r.file: _script(r.caption) for r in records}
    counts = Counter(script for script in scripts.values() if script)
    if not counts:
        return
    main, number = counts.most_common(1)[0]
    others = {file: script for file, script in scripts.items() if script not in (None, main)}
    if others and number >= _MAIN_SCRIPT_SHARE * counts.total():
        names = ", ".join(sorted({str(script) for script in others.values()}))
        message = f"captions in another script ({names}) than the others ({main})"
        yield Finding("warning", "caption_script", message, tuple(others))


def _script(text: str) -> str | None:
    """Return the script of most letters of a text, such as Latin; None without one."""
    if text.isascii():  # most captions, and a look at each letter takes long
        return "Latin" if any(map(str.isalpha, text)) else None
    letters = [unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha()]
    counts = Counter(_SCRIPTS.get(name, name.capitalize()) for name in letters)
    if not counts:
        return None
    name, number = counts.most_common(1)[0]
    return name if number >= _SCRIPT_SHARE * len(letters) else None
