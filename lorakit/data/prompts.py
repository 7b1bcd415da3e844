"""Prompt files: what to sample and what to score it against.

JSONL holds one object a line with the keys of `Prompt`; a YAML list holds such objects or plain strings; a
TSV with a `Prompt` column is PartiPrompts' format (Yu et al., 2022); a text with `.format(unique_token,
class_token)` is DreamBooth's prompts_and_classes.txt (Ruiz et al., 2022); other text has one prompt a line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from lorakit.core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_SEEDS = (0, 1, 2, 3)
DEFAULT_KIND = "concept"
MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes
PROMPT_KEYS = ("id", "prompt", "score_text", "negative", "seeds", "kind", "image", "mask")
SUBJECT_KINDS = ("concept", "recontextualisation", "property", "style", "view")
CLASS_KINDS, OTHER_KINDS = ("class",), ("other", "unrelated")
LIVING_CLASS_NOUNS = {
    "animal",
    "baby",
    "bird",
    "boy",
    "cat",
    "child",
    "dog",
    "face",
    "girl",
    "horse",
    "kitten",
    "man",
}
LIVING_CLASS_NOUNS |= {
    "person",
    "puppy",
    "woman",
}  # DreamBooth's list has clothes for these, and surfaces for things
Role = Literal["subject", "class", "unrelated"]
_ID = re.compile(r"[\w][\w.-]{0,99}")  # ids name files
_DREAMBOOTH = re.compile(r"""['"](.*\{0\}.*\{1\}.*)['"]\.format\(unique_token, *class_token\)""")


@dataclass(frozen=True)
class Prompt:
    """One prompt, and `score_text` to compare its pictures with: the trigger replaced by its class noun.

    `kind` groups prompts in reports: "concept" for what was trained, "other" for the rest, or any name.
    `image` is the picture that guides this prompt (img2img, ControlNet, IP-Adapter) or that the base edits,
    if there is one, `further` are more of them, and `mask` is white where the base paints.
    """

    id: str
    prompt: str
    score_text: str
    negative: str = ""
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    kind: str = DEFAULT_KIND
    image: Path | None = None
    further: tuple[Path, ...] = ()
    mask: Path | None = None

    def role(self, trigger: str | None) -> Role:
        """What the prompt tells about an adapter: whether it learnt the subject, or left the rest alone.

        Its kind says so, or, for kinds of other lists, whether the text holds the trigger.
        """
        if self.kind in SUBJECT_KINDS:
            return "subject"
        if self.kind in CLASS_KINDS:
            return "class"
        if self.kind in OTHER_KINDS or (trigger and not has_word(self.prompt, trigger)):
            return "unrelated"
        return "subject"


def has_word(text: str, word: str) -> bool:
    """Whether a text holds a word or phrase, not as a part of a longer word."""
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


@dataclass(frozen=True)
class Subject:
    """What fills the places of prompt lists such as DreamBooth's: "a {trigger} {noun} in the snow"."""

    trigger: str | None = None
    noun: str | None = None

    def plain(self, text: str) -> str:
        """The text with the class noun for the trigger, which no scorer knows."""
        if not (self.trigger and self.noun):
            return text
        trigger, noun = re.escape(self.trigger), re.escape(self.noun)
        return re.sub(rf"(?<!\w){trigger}(\s+{noun})?(?!\w)", self.noun, text, flags=re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """A picture, the prompt it was made from, and the seed of its noise; of a clip, the picture shows a few
    of its `frames`."""

    prompt: Prompt
    seed: int
    image: Image.Image
    frames: tuple[Image.Image, ...] = ()


def load_prompts(path: str | Path, subject: Subject | None = None) -> list[Prompt]:
    """Read a prompt file by its extension (.jsonl, .yaml/.yml, .tsv, else text).

    `subject` is needed for lists with places for it; elsewhere it puts the class noun for the trigger where a
    row has no `score_text`. Raises DataError naming file and line for anything that cannot be used: another
    key, an empty prompt, an id given twice, a seed that is no whole number from zero up, a file without
    prompts.
    """
    file = Path(path)
    text = _read(file)
    readers = {".jsonl": _jsonl, ".yaml": _yaml, ".yml": _yaml, ".tsv": _tsv}
    reader = readers.get(file.suffix.lower(), _lines)
    subject = subject or Subject()
    if reader is _lines and _DREAMBOOTH.search(text):
        rows = _dreambooth(text, file, subject)
    else:
        rows = reader(text, file)
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        prompt = _prompt(row, f"{len(prompts) + 1:04d}", file, f"{file}, line {line}")
        if prompt.score_text == prompt.prompt:
            prompt = replace(prompt, score_text=subject.plain(prompt.prompt))
        first = seen.setdefault(prompt.id.casefold(), line)  # ids name files, and some disks ignore case
        if first != line:
            raise DataError(f"id {prompt.id!r} is taken by line {first}", where=f"{file}, line {line}")
        prompts.append(prompt)
    if not prompts:
        raise DataError("the file holds no prompt", where=str(file))
    return prompts


def prompt_to_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a line of a JSONL prompt file, without what is as it would be anyway."""
    row: dict[str, Any] = {"id": prompt.id, "prompt": prompt.prompt}
    if prompt.score_text != prompt.prompt:
        row["score_text"] = prompt.score_text
    if prompt.negative:
        row["negative"] = prompt.negative
    if prompt.image:
        row["image"] = (
            [str(p) for p in (prompt.image, *prompt.further)] if prompt.further else str(prompt.image)
        )
    if prompt.mask:
        row["mask"] = str(prompt.mask)
    return row | {"seeds": list(prompt.seeds), "kind": prompt.kind}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error}", where=str(file), remedy="save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read the prompt file: {error.strerror}", where=str(file)) from error


def _jsonl(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"not valid JSON: {error}", where=f"{file}, line {number}") from error
        if not isinstance(row, dict):
            raise DataError("a line must hold one JSON object", where=f"{file}, line {number}")
        yield number, row


def _yaml(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.SequenceNode):
            raise DataError("not a YAML list", where=str(file), remedy="start each prompt with '- '")
        # Nodes, not values, for they know their lines.
        rows = [(node.start_mark.line + 1, loader.construct_object(node, deep=True)) for node in root.value]
    except yaml.YAMLError as error:
        raise DataError(f"not valid YAML: {error}", where=str(file)) from error
    for line, value in rows:
        if not isinstance(value, str | dict):
            where = f"{file}, line {line}"
            raise DataError("an item must be a text or a mapping", where=where, remedy="quote the prompt")
        yield line, {"prompt": value} if isinstance(value, str) else value


def _tsv(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = next(rows, [])
    if "Prompt" not in names:
        remedy = "PartiPrompts' first line is: Prompt, Category, Challenge, Note (separated by tabs)"
        raise DataError("no column named Prompt", where=f"{file}, line 1", remedy=remedy)
    for number, cells in enumerate(rows, 2):
        if not any(cells):
            continue
        if len(cells) != len(names):
            raise DataError(f"{len(cells)} cells under {len(names)} heads", where=f"{file}, line {number}")
        row = dict(zip(names, cells, strict=True))
        yield number, {"prompt": row["Prompt"], "kind": row.get("Category") or DEFAULT_KIND}


def _dreambooth(text: str, file: Path, subject: Subject) -> Iterator[tuple[int, dict[str, Any]]]:
    """One of the two lists of DreamBooth's file: the first is for things, the second for the living."""
    if not subject.noun:
        remedy = "say what it is, such as --class-noun dog (and --trigger sks)"
        raise DataError("the prompts have places for a subject", where=str(file), remedy=remedy)
    living = subject.noun.split()[-1].lower() in LIVING_CLASS_NOUNS
    number = 0
    for line, content in enumerate(text.splitlines(), 1):
        if "prompt_list" in content:
            number += 1
        found = _DREAMBOOTH.search(content)
        if found and number == (2 if living else 1):
            prompt, plain = (
                " ".join(found[1].format(token, subject.noun).split())
                for token in (subject.trigger or "", "")
            )
            yield line, {"prompt": prompt, "score_text": plain}


def _lines(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, {"prompt": line}


def _prompt(row: dict[str, Any], number: str, file: Path, where: str) -> Prompt:
    """A checked prompt; `number` is its id where the row gives none; image paths are relative to `file`."""
    unknown = [str(key) for key in row if key not in PROMPT_KEYS]
    if unknown:
        remedy = f"known keys: {', '.join(PROMPT_KEYS)}"
        raise DataError(f"unknown key {', '.join(map(repr, unknown))}", where=where, remedy=remedy)
    prompt = _text(row, "prompt", "", where).strip()
    if not prompt:
        raise DataError("the prompt is empty", where=where)
    name = row.get("id", number)
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(name, str) or not _ID.fullmatch(name):
        remedy = "up to 100 letters, digits, dots, dashes and underscores, for it names files"
        raise DataError(f"id {name!r} cannot be used", where=where, remedy=remedy)
    pictures = _pictures(row, file, where)
    return Prompt(
        id=name,
        prompt=prompt,
        score_text=_text(row, "score_text", "", where).strip() or prompt,
        negative=_text(row, "negative", "", where),
        seeds=_seeds(row.get("seeds"), where),
        kind=_text(row, "kind", "", where).strip() or DEFAULT_KIND,
        image=pictures[0] if pictures else None,
        further=tuple(pictures[1:]),
        mask=_image(_text(row, "mask", "", where), file, where),
    )


def _pictures(row: dict[str, Any], file: Path, where: str) -> list[Path]:
    """One path, or a list of them."""
    given = row.get("image")
    names = given if isinstance(given, list) else [_text(row, "image", "", where)]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"image must be a path or a list of paths, got {given!r}", where=where)
    return [path for name in names if (path := _image(name, file, where))]


def _image(name: str, file: Path, where: str) -> Path | None:
    if not name:
        return None
    path = file.parent / name
    if not path.is_file():
        raise DataError(f"there is no image {name!r}", where=where, remedy="its path is relative to the file")
    return path


def _text(row: dict[str, Any], key: str, default: str, where: str) -> str:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise DataError(f"{key} must be a text, got {value!r}", where=where)
    return value


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        return DEFAULT_SEEDS
    whole = isinstance(value, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) for seed in value
    )
    if not whole or not value or len(set(value)) < len(value) or not all(0 <= s <= MAX_SEED for s in value):
        remedy = "a list of different whole numbers from 0 up, such as [0, 1, 2, 3]"
        raise DataError(f"seeds {value!r} cannot be used", where=where, remedy=remedy)
    return tuple(value)
