"""Checks of caption texts: missing trigger, refusals, repetition, words that no encoder reads."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set

from data_tools.captions import lint_answers
from data_tools.captions.edits import apply_edits, strip_preamble
from data_tools.captions.refusals import is_refusal
from data_tools.findings import Finding
from lorakit.core import platform, prompt_syntax
from lorakit.core.words import has_word
from lorakit.imaging.crops import crop_hash
from lorakit.manifest import Record

CLIP_MAX_TOKENS = 75  # 77 with the start and end tokens
COMMON_PHRASE_SHARE = 0.8
_WORDS_FOR_PHRASES = 400  # the most frequent ones
COMMON_PHRASE_MIN_CAPTIONS = 5  # with fewer captions, every phrase is in most of them
_TOKENS = re.compile(r"[^\W\d_]+|\d|[^\w\s]+")  # CLIP uses at least one token for each of these
_DESCRIPTIVE = re.compile(r"[^\W\d_]")
_FILE_NAME = re.compile(  # as cameras, phones and screens name images, and any name with its extension
    r"(?i)^\W*(?:(?:img|dsc[nf]?|dcim|pxl|p|mvimg|image|photo|picture|screenshot|untitled|wa)[\W_]*\d[\w-]*(?:\.\w+)?"
    r"|\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif))\W*$"
)
_WORDS = re.compile(r"[\w'-]+")
_STOP_WORD_LIST = (
    "a an the of in on at to and with is are its it by for from as this that there"
    " photo photograph picture image"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


def lint_captions(
    records: Sequence[Record], trigger: str | None = None, *, tokens_counted: bool = False
) -> list[Finding]:
    """Return findings on the captions of kept images.

    `tokens_counted` means that tokens.py has counted the tokens for the base, so they are not estimated here.
    """
    kept = [record for record in records if record.keep and record.caption]
    findings = [
        *_missing_trigger(kept, trigger),
        *_foreign_syntax(kept),
        *_single_caption_findings(kept),
        *lint_answers.answer_findings(kept),
        *_identical_captions(kept),
        *_common_phrase_findings(kept, trigger),
        *_stale_captions(kept),
    ]
    return findings if tokens_counted else [*findings, *_too_long_for_clip(kept)]


def _missing_trigger(records: Sequence[Record], trigger: str | None) -> Iterator[Finding]:
    """Find captions without the trigger word: all of them, or some."""
    if not (trigger and trigger.strip()):
        return
    word = trigger.strip()
    without = tuple(r.file for r in records if not all(has_word(c.text, word) for c in r.captions))
    if not without:
        return
    remedy = f"add it with --caption-edit {platform.quote_argument(f'trigger={word}')}"
    if not any(has_word(caption.text, word) for record in records for caption in record.captions):
        message = f"no caption has the trigger {word!r}, so it would not be learned; {remedy}"
        yield Finding("warning", "trigger_in_no_caption", message, without)
    else:
        message = (
            f"the captions of {len(without)} of {len(records)} images lack the trigger {word!r}; {remedy}"
        )
        yield Finding("warning", "trigger_missing", message, without)


def _foreign_syntax(records: Sequence[Record]) -> Iterator[Finding]:
    """Find the syntax of other tools, which would be trained as words."""
    texts = [(record.file, caption.text) for record in records for caption in record.captions]
    for summary in prompt_syntax.summarize_syntax(texts):
        remedy = summary.kind.remedy
        if _removes(summary):
            remedy += f", for example with --caption-edit {platform.quote_argument(summary.kind.edit)}"
        if any(map(prompt_syntax.has_trigger_placeholder, summary.examples)):
            remedy = "give the trigger word, for example --trigger sks, and it is filled in"
        yield Finding("warning", summary.kind.code, f"{summary.message}; {remedy}", summary.files)


def _removes(summary: prompt_syntax.SyntaxSummary) -> bool:
    """Return True if the caption edit of a kind of syntax removes the examples."""
    edited = [apply_edits(text, [summary.kind.edit]) for text in summary.examples if summary.kind.edit]
    return bool(edited) and not any(
        use.kind is summary.kind for text in edited for use in prompt_syntax.find_syntax(text)
    )


def _single_caption_findings(records: Sequence[Record]) -> Iterator[Finding]:
    """Yield findings that concern one caption alone."""
    tests = (
        ("warning", "captioner_refusal", "the captioner refused instead of describing the image", is_refusal),
        (
            "warning",
            "caption_without_words",
            "a number or the name of a file does not describe the image",
            lambda text: not _DESCRIPTIVE.search(_FILE_NAME.sub(" ", text)),
        ),
        ("note", "short_caption", "a caption of one word", lambda text: len(_WORDS.findall(text)) < 2),
        (
            "note",
            "caption_preamble",
            "starts with words such as 'The image shows' (--caption-edit strip-preamble)",
            lambda text: strip_preamble(text) != text,
        ),
    )
    for level, code, message, test in tests:
        files = tuple(r.file for r in records if any(test(caption.text) for caption in r.captions))
        if files:
            yield Finding(level, code, message, files)  # type: ignore[arg-type]


def _too_long_for_clip(records: Sequence[Record]) -> Iterator[Finding]:
    """Find captions that are certainly too long for CLIP; a base's own tokenizers would count exactly."""
    files = tuple(
        r.file for r in records if any(len(_TOKENS.findall(c.text)) > CLIP_MAX_TOKENS for c in r.captions)
    )
    if files:
        message = (
            f"longer than the {CLIP_MAX_TOKENS} tokens that CLIP reads; only T5 and LLM encoders read the end"
        )
        yield Finding("warning", "long_caption", f"{message} (--base counts exactly)", files)


def _stale_captions(records: Sequence[Record]) -> Iterator[Finding]:
    """Find captions of a model whose image or crop changed afterwards."""
    files = tuple(
        r.file for r in records if any(c.image_hash not in (None, crop_hash(r)) for c in r.captions)
    )
    if files:
        message = "the image or its crop changed after the captioner described it; caption it again"
        yield Finding("warning", "stale_caption", message, files)


def _identical_captions(records: Sequence[Record]) -> Iterator[Finding]:
    """Find equal captions of several images; a template repeats by design and does not count."""
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
    """Find phrases in nearly all captions, which absorb what the trigger should learn."""
    written = [r for r in records if r.captions[0].source not in ("template", "folder")]
    if len(written) < COMMON_PHRASE_MIN_CAPTIONS:
        return
    for phrase, number in common_phrases(written, trigger):
        share = number / len(written)
        message = f"{phrase!r} is in {share:.0%} of the captions and absorbs what the trigger should learn"
        yield Finding("note", "common_phrase", message)


def common_phrases(records: Sequence[Record], trigger: str | None) -> list[tuple[str, int]]:
    """Return the longest phrases (2 to 8 words) in at least 80 % of the captions, and their counts."""
    min_count = COMMON_PHRASE_SHARE * len(records)
    single = Counter(word for record in records for word in set(_words(record.caption)))
    often = {word for word, number in single.items() if number >= min_count}
    counts: Counter[tuple[str, ...]] = Counter()
    for record in records:
        counts.update(_grams(_words(record.caption), often, 2, 8))
    trigger_words = set((trigger or "").casefold().split())
    frequent = [
        (gram, number)
        for gram, number in counts.items()
        if number >= min_count and not trigger_words & set(gram) and not set(gram) <= _STOP_WORDS
    ]
    longest = [
        (" ".join(gram), number)
        for gram, number in frequent
        if not any(gram != other and _within(gram, other) for other, _ in frequent)
    ]
    return sorted(longest, key=lambda pair: (-pair[1], pair[0]))


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORDS.findall(text)]


def frequent_phrases(records: Sequence[Record], limit: int = 20) -> list[tuple[str, int]]:
    """Return the most frequent phrases (1 to 4 words, in at least 2 captions), and their number of captions.

    Phrases do not start or end with a stop word. A phrase that occurs only inside a longer one is left out.
    Only the most frequent words are combined: the phrases of 100,000 captions would fill the memory.
    """
    single = Counter(word for record in records for word in set(_words(record.caption)))
    numbers = sorted((number for word, number in single.items() if word not in _STOP_WORDS), reverse=True)
    enough = max([2, *numbers[_WORDS_FOR_PHRASES : _WORDS_FOR_PHRASES + 1]])
    often = {word for word, number in single.items() if number >= enough}
    counts: Counter[tuple[str, ...]] = Counter()
    for record in records:
        grams = _grams(_words(record.caption), often, 1, 4)
        counts.update(gram for gram in grams if gram[0] not in _STOP_WORDS and gram[-1] not in _STOP_WORDS)
    by_count: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for gram, number in counts.items():
        by_count[number].append(gram)
    phrases: list[tuple[str, int]] = []
    for number in sorted(by_count.keys() - {1}, reverse=True):
        longest = [
            g
            for g in by_count[number]
            if not any(len(o) > len(g) and _within(g, o) for o in by_count[number])
        ]
        phrases += [(" ".join(gram), number) for gram in sorted(longest)]
        if len(phrases) >= limit:
            break
    return phrases[:limit]


def _grams(words: Sequence[str], often: Set[str], shortest: int, longest: int) -> set[tuple[str, ...]]:
    """Return the phrases of a caption that consist of frequent words."""
    grams: set[tuple[str, ...]] = set()
    for is_often, run in itertools.groupby(words, often.__contains__):
        if is_often:
            part = tuple(run)
            lengths = range(shortest, min(longest, len(part)) + 1)
            grams.update(part[i : i + n] for n in lengths for i in range(len(part) - n + 1))
    return grams


def _within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
