"""Syntax of other tools in captions and prompts, which lorakit would otherwise train or sample as words.

Options of kohya's scripts (`--n`, `--w`), placeholders (`[trigger]`), dynamic prompts (`{a|b}`, `__name__`),
attention weights (`(x:1.2)`), tags of networks (`<lora:x:1>`), keywords (`BREAK`), names of embeddings, and
escaped parentheses. Parentheses, dashes, ratios and times of plain prose are not syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_EXAMPLES = 3
_MAX_NESTING = 8  # of weights within weights
_NUMBER_OPTIONS = "w h d l s g f b m fs bs ow oh nw nh ds st cr c t dsd1 dsd2 dsr1 glt gls gle gr of ns"
_TEXT_OPTIONS = "n nl n2 p2 ss am cn cni ct ctr cnt ck ci cim ei i iss sc vn"
_LONG_OPTIONS = (
    "prompt negative_prompt negative steps cfg cfg_scale scale guidance_scale width height seed subseed"
    " sampler sampler_name scheduler batch_size n_iter restore_faces tiling sd_model outpath_samples"
    " network_multiplier rcfg styles num_inference_steps"
)
_MIDJOURNEY_OPTIONS = (
    "ar aspect v version niji stylize chaos q quality no style iw sref cref sw cw tile weird raw uplight"
)
_OPTION = re.compile(
    rf"(?:^|[\s,])--(?:{'|'.join(f'{_NUMBER_OPTIONS} {_TEXT_OPTIONS}'.split())})(?:\s+|=)\S"
    rf"|(?:^|[\s,])—(?:{'|'.join(_NUMBER_OPTIONS.split())})\s+\d[\d.]*(?![\w.])"
    rf"|(?:^|[\s,])--(?:{'|'.join(f'{_LONG_OPTIONS} {_MIDJOURNEY_OPTIONS}'.split())})(?=[\s=]|$)",
    re.IGNORECASE,
)
_OPTION_START = re.compile(r"(?:^|(?<=[\s,]))(?:--|—)(?=[A-Za-z])")
_NAME_AND_VALUE = re.compile(r"([\w-]+)(?:\s*=\s*|\s+|$)(.*)", re.DOTALL)
# options of one word at most, up to the end: `--xyz 2`, but not `--brown and white-- on grass`
_UNKNOWN_OPTIONS = re.compile(r"(?:^|\s)--[A-Za-z]\w*(?:(?:\s+|=)[\w.:,/-]+)?\s*$")
_QUOTED_BEGINNING = re.compile(r"\"((?:\\.|[^\"\\])*)\"(?=\s|$)|'([^']*)'(?=\s|$)")
_QUOTED_VALUE = re.compile(rf"\w+(?:\s*=\s*|\s+)(?:{_QUOTED_BEGINNING.pattern})")
_TRIGGER = re.compile(r"\[\s*trigger(?:[ _-]?word)?\s*\]|\{\s*trigger(?:[ _-]?word)?\s*\}", re.IGNORECASE)
_ESCAPED = re.compile(r"\\([()\[\]{}])")
_QUOTED = re.compile(r"(?<!\w)(?:\"[^\"\n]{1,120}\"|“[^”\n]{1,120}”|«[^»\n]{1,120}»)(?!\w)")


@dataclass(frozen=True)
class SyntaxKind:
    """A convention. `title` names it; `remedy` says what to do in captions.

    `edit` is a caption edit (`--caption-edit`) that removes it, "" if a person has to decide.
    """

    code: str
    title: str
    remedy: str
    edit: str = ""


@dataclass(frozen=True)
class SyntaxUse:
    """One place in a text. `certain` is False if the text could also be meant literally."""

    kind: SyntaxKind
    text: str
    certain: bool = True


OPTIONS = SyntaxKind(
    "prompt_options",
    "options of a prompt file, such as --w 512",
    "remove them",
    r"replace=/(^|\s)(--|—)[a-z].*//",
)
PLACEHOLDER = SyntaxKind("placeholder", "a placeholder such as [trigger]", "write the words it stands for")
WILDCARD = SyntaxKind("wildcard", "a wildcard such as {a|b} or __name__", "write one of its words")
WEIGHT = SyntaxKind(
    "attention_weight",
    "attention syntax such as (word:1.2), ((word)) or [word]",
    "write the word alone",
    r"replace=/[(\[{]+([^()\[\]{}|:]+)(?::[\d.+-]+)?[)\]}]+(\++|\d*\.\d+)?/\1/",
)
NETWORK_TAG = SyntaxKind(
    "network_tag",
    "a tag of a network, such as <lora:name:1>",
    "remove it",
    r"replace=/\s*<[a-z]+:[^<>]*>,?//",
)
KEYWORD = SyntaxKind(
    "prompt_keyword",
    "a keyword such as BREAK or AND",
    "remove it",
    r"replace=/\s*\b(BREAK|AND|ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b,?//",
)
EMBEDDING = SyntaxKind(
    "embedding_name", "the name of an embedding, such as embedding:name", "write the words it stands for"
)
KINDS = (OPTIONS, PLACEHOLDER, WILDCARD, WEIGHT, NETWORK_TAG, KEYWORD, EMBEDDING)

_LETTERS = r"[^()\[\]{}|]*[^\W\d_]{2}[^()\[\]{}|]*"  # with a word, without brackets
_PATTERNS: tuple[tuple[SyntaxKind, str, bool], ...] = (
    (PLACEHOLDER, r"[\[{](?:name|filewords|class_noun|subject|token|concept|caption)[\]}]", True),
    (PLACEHOLDER, r"\{[01]?\}", True),
    (WILDCARD, r"\{[^{}]*\|[^{}]*\}|\{[\d-]+\$\$[^{}]*\}", True),
    (WILDCARD, r"(?<!\w)__(?!(?:init|main|call|repr|str|doc)__)[A-Za-z][\w/*-]*?__(?!\w)", True),
    (WILDCARD, r"\{\w[^{}|]*(?:,[^{}|]+)+\}", False),
    (WEIGHT, r"[(\[][^()\[\]{}|:]*[^\W\d_][^()\[\]{}|:]*(?<![\d\s]):[+-]?\d?\.\d+[)\]]", True),
    (WEIGHT, r"\([^()\[\]{}|:]*[^\W\d_][^()\[\]{}|:]*(?<![\d\s]):[+-]?\d\)", True),
    (WEIGHT, r"\)\s?:[+-]?\d?\.?\d+\)|\)\++(?![\w+])|\)\d?\.\d+(?!\w)", True),
    (WEIGHT, r"\[[^\[\]]*[^\W\d_]\w*\|[^\[\]]+\]|\[[^\[\]:]*:[^\[\]:]*:\d*\.?\d+\]", True),
    (WEIGHT, r"\([^()\[\]{}|:]*[^\W\d_]\s*:\s+[01]\.\d\)", False),
    (WEIGHT, rf"\(\({_LETTERS}\)\)|\[\[{_LETTERS}\]\]|\{{\{{{_LETTERS}\}}\}}", False),
    (NETWORK_TAG, r"<(?:lora|lyco|hypernet|locon|loha|lokr|dora|lbw|wlr|segment|bypass)\s*:[^<>]*>", True),
    (KEYWORD, r"\b(?:ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b", True),
    (KEYWORD, r"(?<![A-Z]{2} )(?<!\w)BREAK(?!\w)(?! [A-Z]{2})", False),
    (KEYWORD, r"(?<=[a-z0-9),] )AND(?= [a-z0-9(])", False),
    (EMBEDDING, r"(?<!\w)embedding:[\w./\\-]+", True),
)
_COMPILED = tuple(
    (kind, re.compile(pattern, re.IGNORECASE if kind is NETWORK_TAG else 0), certain)
    for kind, pattern, certain in _PATTERNS
)
_SIGNS = re.compile(r"[{}()\[\]<>|\\:_—]|--|\b(?:AND|BREAK|ADD[A-Z]{3,4})\b")  # every use has at least one
_WHOLE_TAG = re.compile(rf"\({_LETTERS}\)|\[{_LETTERS}\]|\{{{_LETTERS}\}}")
_KEPT_IN_QUOTES = (NETWORK_TAG, PLACEHOLDER)  # the others may be words that the image shows


def find_syntax(text: str) -> list[SyntaxUse]:
    """Return the uses of other tools' syntax in a caption or prompt, at most one for each kind."""
    if not _SIGNS.search(text):
        return []
    text = unescape_parentheses(text)
    first: dict[str, SyntaxUse] = {}
    for use in _uses(text):
        known = first.get(use.kind.code)
        if known is None or (use.certain and not known.certain):
            first[use.kind.code] = use
    return list(first.values())


def has_escapes(text: str) -> bool:
    r"""Return True if a text contains escaped parentheses such as `\(`."""
    return _ESCAPED.search(text) is not None


def _uses(text: str) -> Iterator[SyntaxUse]:
    plain = _QUOTED.sub(" ", text)
    if match := _OPTION.search(text):
        yield SyntaxUse(OPTIONS, text[match.start() :].strip(" ,")[:60])
    if match := _TRIGGER.search(text):
        yield SyntaxUse(PLACEHOLDER, match[0])
    for kind, pattern, certain in _COMPILED:
        if match := pattern.search(text if kind in _KEPT_IN_QUOTES else plain):
            yield SyntaxUse(kind, match[0][:60], certain)
    yield from (SyntaxUse(WEIGHT, tag[:60], False) for tag in _bracketed_tags(plain))


@dataclass(frozen=True)
class SyntaxSummary:
    """One convention in the texts of a dataset or prompt file: the files that have it, and a few examples."""

    kind: SyntaxKind
    files: tuple[str, ...]
    examples: tuple[str, ...]

    @property
    def message(self) -> str:
        """The convention, the number of files and the examples, as one line."""
        examples = ", ".join(map(repr, self.examples))
        number = "1 image has" if len(self.files) == 1 else f"{len(self.files)} images have"
        return f"{number} {self.kind.title} in a caption, which is trained as plain words: {examples}"


def summarize_syntax(texts: Iterable[tuple[str, str]]) -> list[SyntaxSummary]:
    """Return a summary for each kind of syntax in (file, text), in the order of `KINDS`."""
    files: dict[str, dict[str, None]] = {kind.code: {} for kind in KINDS}
    examples: dict[str, dict[str, None]] = {kind.code: {} for kind in KINDS}
    for file, text in texts:
        for use in find_syntax(text):
            files[use.kind.code][file] = None
            examples[use.kind.code][use.text] = None
    return [
        SyntaxSummary(kind, tuple(files[kind.code]), tuple(examples[kind.code])[:MAX_EXAMPLES])
        for kind in KINDS
        if files[kind.code]
    ]


def _bracketed_tags(text: str) -> list[str]:
    """Return the tags that are in brackets as a whole, of a text that is a list of tags."""
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    is_list = len(tags) >= 3 and sum(len(tag.split()) for tag in tags) <= 4 * len(tags) and ". " not in text
    return (
        [tag for tag in tags if _WHOLE_TAG.fullmatch(tag) and not _TRIGGER.fullmatch(tag)] if is_list else []
    )


# ---- what has a meaning here -------------------------------------------------------------------------------


def unescape_parentheses(text: str) -> str:
    r"""Return the text that `\(` and `\)` stand for: web interfaces read others as weights."""
    return _ESCAPED.sub(r"\1", text)


def plain_words(text: str) -> str:
    """Return a text without weights, tags of networks and keywords: the words that an image is to show."""
    text = unescape_parentheses(text)
    for kind in (NETWORK_TAG, KEYWORD, WEIGHT):
        pattern, replacement = kind.edit.removeprefix("replace=/").removesuffix("/").rsplit("/", 1)
        for _ in range(_MAX_NESTING):
            text, before = re.sub(pattern, replacement, text), text
            if text == before:
                break
    return " ".join(text.split()).strip(" ,")


def fill_trigger(text: str, trigger: str) -> str:
    """Return the text with the trigger word in place of `[trigger]` and `{trigger}`."""
    return _TRIGGER.sub(lambda match: trigger, text)


def has_trigger_placeholder(text: str) -> bool:
    """Return True if a text contains `[trigger]` or `{trigger}`."""
    return _TRIGGER.search(text) is not None


@dataclass(frozen=True)
class PromptOption:
    """An option of a prompt, such as `--d 1`: its name in lower case, and its value ("" without one)."""

    name: str
    value: str


def split_options(text: str) -> tuple[str, list[PromptOption]]:
    """Split a prompt from the options behind it, if it has any that are known, or nothing but options.

    A value is everything up to the next `--`, as in kohya's scripts, or what is in quotes.
    """
    starts = list(_option_starts(text))
    if not starts or not (_OPTION.search(text) or _UNKNOWN_OPTIONS.search(text)):
        return text, []
    ends = [match.start() for match in starts[1:]] + [len(text)]
    options = []
    for match, end in zip(starts, ends, strict=True):
        if option := _NAME_AND_VALUE.fullmatch(text[match.end() : end].strip(" ,")):
            options.append(PromptOption(option[1].lower(), _unquoted(option[2])))
    return text[: starts[0].start()].strip(" ,"), options


def _option_starts(text: str) -> Iterator[re.Match[str]]:
    """Yield the beginnings of the options in a text, without those within a value in quotes."""
    quoted_until = 0
    for match in _OPTION_START.finditer(text):
        if match.start() < quoted_until:
            continue
        value = _QUOTED_VALUE.match(text, match.end())
        quoted_until = value.end() if value else 0
        yield match


def _unquoted(value: str) -> str:
    """Return the value of an option without the quotes around it or around its beginning."""
    value = value.strip()
    if match := _QUOTED_BEGINNING.match(value):
        inside = match[1] if match[1] is not None else match[2]
        value = f"{inside}{value[match.end() :]}".replace('\\"', '"')
    return value.strip().strip("\"'").strip()
