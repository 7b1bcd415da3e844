"""What captions alone can get wrong: no trigger, refusals, sameness, words that no encoder will read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from data_tools.findings import Finding
from lorakit.manifest import Record

CLIP_TOKENS = 75  # 77 with the two marks that begin and end a text
LEAK_SHARE = 0.8
LEAK_FROM = 5  # captions; with fewer, every phrase is in most of them
_TOKENS = re.compile(r"[^\W\d_]+|\d|[^\w\s]+")  # CLIP spends at least one token on each of these
_WORDS = re.compile(r"[\w'-]+")
_REFUSAL = re.compile(
    r"\b(i (cannot|can't|am unable|apologi[sz]e)|i'm (sorry|unable)|i am sorry|as an ai\b"
    r"|unable to (assist|help|describe))",
    re.IGNORECASE,
)
_COMMON = frozenset(
    {
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "and",
        "with",
        "is",
        "are",
        "its",
        "it",
        "by",
        "for",
        "from",
    }
    | {"as", "this", "that", "there", "photo", "photograph", "picture", "image"}
)


def lint(records: Sequence[Record], trigger: str | None = None) -> list[Finding]:
    """Findings on the captions of kept images."""
    kept = [record for record in records if record.keep and record.caption]
    return [*_trigger(kept, trigger), *_single(kept), *_identical(kept), *_leaks(kept, trigger)]


def _trigger(records: Sequence[Record], trigger: str | None) -> Iterator[Finding]:
    if trigger:
        word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
        without = tuple(r.file for r in records if not all(word.search(c.text) for c in r.captions))
        if without:
            yield Finding("warning", "trigger_missing", f"a caption lacks the trigger {trigger!r}", without)


def _single(records: Sequence[Record]) -> Iterator[Finding]:
    """Findings that one caption shows by itself."""
    tests = (
        ("warning", "refusal", "the captioner refused instead of describing", _REFUSAL.search),
        ("note", "short_caption", "a caption of one word", lambda text: len(_WORDS.findall(text)) < 2),
        (
            "warning",
            "long_caption",
            f"longer than the {CLIP_TOKENS} tokens that CLIP reads; only T5 and LLM encoders see the end",
            lambda text: len(_TOKENS.findall(text)) > CLIP_TOKENS,
        ),
    )
    for level, code, message, test in tests:
        files = tuple(r.file for r in records if any(test(caption.text) for caption in r.captions))
        if files:
            yield Finding(level, code, message, files)  # type: ignore[arg-type]


def _identical(records: Sequence[Record]) -> Iterator[Finding]:
    """The same words under several images; a template repeats by design and is left out."""
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.captions[0].source not in ("template", "folder"):
            groups[record.caption.casefold()].append(record.file)
    for text, files in sorted(groups.items()):
        if len(files) > 1:
            short = text if len(text) <= 60 else text[:59] + "…"
            yield Finding(
                "warning", "identical_captions", f"{len(files)} images share {short!r}", tuple(files)
            )


def _leaks(records: Sequence[Record], trigger: str | None) -> Iterator[Finding]:
    """Phrases said nearly everywhere take up what the trigger should learn."""
    written = [r for r in records if r.captions[0].source not in ("template", "folder")]
    if len(written) < LEAK_FROM:
        return
    for phrase, number in common_phrases(written, trigger):
        share = number / len(written)
        message = f"{phrase!r} is in {share:.0%} of the captions and takes up what the trigger should learn"
        yield Finding("note", "common_phrase", message)


def common_phrases(records: Sequence[Record], trigger: str | None) -> list[tuple[str, int]]:
    """(phrase of two to eight words, captions with it), the longest ones in at least 80 % of captions."""
    counts: Counter[tuple[str, ...]] = Counter()
    for record in records:
        words = [word.casefold() for word in _WORDS.findall(record.caption)]
        counts.update({tuple(words[i : i + n]) for n in range(2, 9) for i in range(len(words) - n + 1)})
    least = LEAK_SHARE * len(records)
    marks = set((trigger or "").casefold().split())
    found = [
        (gram, number)
        for gram, number in counts.items()
        if number >= least and not marks & set(gram) and not set(gram) <= _COMMON
    ]
    longest = [
        (" ".join(gram), number)
        for gram, number in found
        if not any(gram != other and _within(gram, other) for other, _ in found)
    ]
    return sorted(longest, key=lambda pair: (-pair[1], pair[0]))


def _within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
