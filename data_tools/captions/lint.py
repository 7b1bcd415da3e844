"""What captions alone can get wrong: no trigger, refusals, sameness, words that no encoder will read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from data_tools.captions.edits import contains_word, strip_preamble
from data_tools.findings import Finding
from lorakit.imaging.crops import crop_hash
from lorakit.manifest import Record

CLIP_MAX_TOKENS = 75  # 77 with the two marks that begin and end a text
COMMON_PHRASE_SHARE = 0.8
COMMON_PHRASE_MIN_CAPTIONS = 5  # captions; with fewer, every phrase is in most of them
_TOKENS = re.compile(r"[^\W\d_]+|\d|[^\w\s]+")  # CLIP spends at least one token on each of these
_WORDS = re.compile(r"[\w'-]+")
_REFUSAL = re.compile(  # at the beginning of a sentence: a sign in the picture may say "I'm sorry", too
    r"(?:^|[.!?]\s+)(?:(?:i|we) (?:cannot|can't|can’t|could not|am unable|apologi[sz]e|won't)"
    r"|(?:i'm|i’m|i am) (?:sorry|unable|not able)|sorry, (?:but )?i|as an ai\b"
    r"|unable to (?:assist|help|describe))",
    re.IGNORECASE,
)
_STOP_WORD_LIST = (
    "a an the of in on at to and with is are its it by for from as this that there"
    " photo photograph picture image"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


def lint_captions(
    records: Sequence[Record], trigger: str | None = None, *, counted: bool = False
) -> list[Finding]:
    """Findings on the captions of kept images; `counted`: tokens.py has counted tokens for the base."""
    kept = [record for record in records if record.keep and record.caption]
    found = [
        *_missing_trigger(kept, trigger),
        *_single_caption_findings(kept),
        *_identical_captions(kept),
        *_common_phrase_findings(kept, trigger),
        *_stale_captions(kept),
    ]
    return found if counted else [*found, *_too_long_for_clip(kept)]


def is_refusal(text: str) -> bool:
    """Whether a captioner refused instead of describing."""
    return _REFUSAL.search(text.strip()) is not None


def _missing_trigger(records: Sequence[Record], trigger: str | None) -> Iterator[Finding]:
    if trigger:
        without = tuple(
            r.file for r in records if not all(contains_word(c.text, trigger) for c in r.captions)
        )
        if without:
            yield Finding("warning", "trigger_missing", f"a caption lacks the trigger {trigger!r}", without)


def _single_caption_findings(records: Sequence[Record]) -> Iterator[Finding]:
    """Findings that one caption shows by itself."""
    tests = (
        ("warning", "refusal", "the captioner refused instead of describing", is_refusal),
        ("note", "short_caption", "a caption of one word", lambda text: len(_WORDS.findall(text)) < 2),
        (
            "note",
            "preamble",
            "begins with words about the picture as such (--edit strip-preamble)",
            lambda text: strip_preamble(text) != text,
        ),
    )
    for level, code, message, test in tests:
        files = tuple(r.file for r in records if any(test(caption.text) for caption in r.captions))
        if files:
            yield Finding(level, code, message, files)  # type: ignore[arg-type]


def _too_long_for_clip(records: Sequence[Record]) -> Iterator[Finding]:
    """What surely does not fit CLIP; with a base named, its own tokenizers say it exactly."""
    files = tuple(
        r.file for r in records if any(len(_TOKENS.findall(c.text)) > CLIP_MAX_TOKENS for c in r.captions)
    )
    if files:
        message = (
            f"longer than the {CLIP_MAX_TOKENS} tokens that CLIP reads; only T5 and LLM encoders see the end"
        )
        yield Finding("warning", "long_caption", f"{message} (--base counts exactly)", files)


def _stale_captions(records: Sequence[Record]) -> Iterator[Finding]:
    """A model described the picture before it, or its crop, changed."""
    files = tuple(r.file for r in records if any(c.seen not in (None, crop_hash(r)) for c in r.captions))
    if files:
        message = "described before the picture or its crop changed; have them captioned again"
        yield Finding("warning", "stale_caption", message, files)


def _identical_captions(records: Sequence[Record]) -> Iterator[Finding]:
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


def _common_phrase_findings(records: Sequence[Record], trigger: str | None) -> Iterator[Finding]:
    """Phrases said nearly everywhere take up what the trigger should learn."""
    written = [r for r in records if r.captions[0].source not in ("template", "folder")]
    if len(written) < COMMON_PHRASE_MIN_CAPTIONS:
        return
    for phrase, number in common_phrases(written, trigger):
        share = number / len(written)
        message = f"{phrase!r} is in {share:.0%} of the captions and takes up what the trigger should learn"
        yield Finding("note", "common_phrase", message)


def common_phrases(records: Sequence[Record], trigger: str | None) -> list[tuple[str, int]]:
    """(phrase of two to eight words, captions with it), the longest ones in at least 80 % of captions."""
    least = COMMON_PHRASE_SHARE * len(records)
    single = Counter(word for record in records for word in set(_words(record.caption)))
    often = {word for word, number in single.items() if number >= least}
    counts: Counter[tuple[str, ...]] = Counter()
    for record in records:
        words = _words(record.caption)
        grams = {tuple(words[i : i + n]) for n in range(2, 9) for i in range(len(words) - n + 1)}
        counts.update(gram for gram in grams if often.issuperset(gram))  # the others would fill the memory
    marks = set((trigger or "").casefold().split())
    found = [
        (gram, number)
        for gram, number in counts.items()
        if number >= least and not marks & set(gram) and not set(gram) <= _STOP_WORDS
    ]
    longest = [
        (" ".join(gram), number)
        for gram, number in found
        if not any(gram != other and _within(gram, other) for other, _ in found)
    ]
    return sorted(longest, key=lambda pair: (-pair[1], pair[0]))


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORDS.findall(text)]


def frequent_phrases(records: Sequence[Record], most: int = 20) -> list[tuple[str, int]]:
    """(phrase of one to four words, captions with it), the most frequent that are in two captions or more.

    Phrases begin and end with words that say something; one that is never seen without a longer one is left
    out for the longer.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for record in records:
        words = [word.casefold() for word in _WORDS.findall(record.caption)]
        grams = {tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)}
        counts.update(gram for gram in grams if gram[0] not in _STOP_WORDS and gram[-1] not in _STOP_WORDS)
    alike: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for gram, number in counts.items():
        alike[number].append(gram)
    shown: list[tuple[str, int]] = []
    for number in sorted(alike.keys() - {1}, reverse=True):
        longest = [
            g for g in alike[number] if not any(len(o) > len(g) and _within(g, o) for o in alike[number])
        ]
        shown += [(" ".join(gram), number) for gram in sorted(longest)]
        if len(shown) >= most:
            break
    return shown[:most]


def _within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
