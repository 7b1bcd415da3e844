"""Prompt files: the prompts to sample, and the texts to score the images against.

JSONL holds one object per line with the keys `PROMPT_KEYS`; a YAML list holds such objects or plain strings;
a TSV with a `Prompt` column is PartiPrompts' format (Yu et al., 2022); a text with `.format(unique_token,
class_token)` is DreamBooth's prompts_and_classes.txt (Ruiz et al., 2022); other text has one prompt per line.
JSON and TOML lists, `#` and options such as `--n` are those of kohya's scripts (foreign_prompts.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorakit.config import strict_yaml
from lorakit.config.concepts import Concept
from lorakit.core import input_files
from lorakit.core.errors import DataError
from lorakit.core.strict_csv import read_csv
from lorakit.core.strict_json import parse_json
from lorakit.core.words import has_word
from lorakit.data import foreign_prompts
from lorakit.data.questions import Question, parse_questions, question_to_json

if TYPE_CHECKING:
    from PIL import Image

_LOGGER = logging.getLogger("lorakit")
DEFAULT_SEEDS = (0, 1, 2, 3)
DEFAULT_KIND = "subject"
MAX_SEED = 2**63 - 1  # the limit of torch.Generator.manual_seed
PROMPT_KEYS = ("id", "prompt", "score_text", "negative", "seeds", "kind", "image", "mask", "questions")
SUBJECT_KINDS = ("subject", "recontextualization", "property", "style", "view")
CLASS_KINDS, UNRELATED_KINDS = ("class",), ("unrelated",)
# DreamBooth's prompts for living subjects have clothes, those for things have surfaces.
LIVING_CLASS_NOUNS = {"animal", "baby", "bird", "boy", "cat", "child", "dog", "face", "girl", "horse"}
LIVING_CLASS_NOUNS |= {"kitten", "man", "person", "puppy", "woman"}
Role = Literal["subject", "class", "unrelated"]
MAX_ID_BYTES = 100  # an id becomes part of a file name, which has at most 255 bytes
_ID = re.compile(r"[\w][\w.-]*")
_DREAMBOOTH = re.compile(r"""['"](.*\{0\}.*\{1\}.*)['"]\.format\(unique_token, *class_token\)""")


@dataclass(frozen=True)
class Prompt:
    """One prompt. `score_text` is the text to score its images against: class noun instead of trigger.

    `kind` groups prompts in reports: "subject", "unrelated", or any name. `images` (the key `image`) are the
    conditioning images of the prompt: those that the base model edits, or the one of img2img, ControlNet or
    IP-Adapter. `mask` is white where the base model fills in. `questions` can be answered with yes or no by
    looking at an image; a model answers them in an evaluation.
    """

    id: str
    prompt: str
    score_text: str
    negative: str = ""
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    kind: str = DEFAULT_KIND
    images: tuple[Path, ...] = ()
    mask: Path | None = None
    questions: tuple[Question, ...] = ()

    def role(self, triggers: Collection[str]) -> Role:
        """Return the prompt's role in an evaluation: a trained subject, its class, or something unrelated.

        The kind decides; for kinds of other prompt lists, the prompt is unrelated if it lacks all triggers.
        """
        if self.kind in SUBJECT_KINDS:
            return "subject"
        if self.kind in CLASS_KINDS:
            return "class"
        has_trigger = any(has_word(self.prompt, trigger) for trigger in triggers)
        if self.kind in UNRELATED_KINDS or (triggers and not has_trigger):
            return "unrelated"
        return "subject"


@dataclass(frozen=True)
class Subject:
    """A subject to fill into prompt lists such as DreamBooth's: "a {trigger} {class_noun} in snow"."""

    trigger: str | None = None
    class_noun: str | None = None


Subjects = Sequence[Subject]


def concept_subjects(concepts: Iterable[Concept]) -> tuple[Subject, ...]:
    """Return the subjects that the concepts of a recipe name, each once."""
    named = (Subject(concept.trigger, concept.class_noun) for concept in concepts)
    return tuple(dict.fromkeys(subject for subject in named if subject != Subject()))


def subject_triggers(subjects: Subjects) -> tuple[str, ...]:
    """Return the trigger words of the subjects, each once."""
    return tuple(dict.fromkeys(subject.trigger for subject in subjects if subject.trigger))


def replace_triggers(text: str, subjects: Subjects) -> str:
    """Return the text with class nouns instead of triggers, which scoring models do not know."""
    named = {s.trigger.casefold(): s for s in subjects if s.trigger and s.class_noun}
    if not named:
        return text
    longest_first = sorted(named.values(), key=lambda s: len(s.trigger or ""), reverse=True)
    # one pattern for all: a class noun that was filled in is not searched again
    pattern = "|".join(
        rf"(?<!\w)({re.escape(s.trigger or '')})(?:\s+{re.escape(s.class_noun or '')})?(?!\w)"
        for s in longest_first
    )

    def class_noun(match: re.Match[str]) -> str:
        return longest_first[(match.lastindex or 1) - 1].class_noun or ""

    return re.sub(pattern, class_noun, text, flags=re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """A sampled image, its prompt, and the seed of its noise.

    A video has `frames`; its `image` then shows a few of them side by side.
    """

    prompt: Prompt
    seed: int
    image: Image.Image
    frames: tuple[Image.Image, ...] = ()


def load_prompts(
    path: str | Path, subjects: Subjects = (), log: Callable[[str], None] = _LOGGER.warning
) -> list[Prompt]:
    """Read a prompt file by its extension (.jsonl, .yaml/.yml, .tsv, .json, .toml, otherwise text).

    The subjects fill the placeholders of DreamBooth's list, and `[trigger]`; elsewhere class nouns replace
    their triggers in rows without a `score_text`. `log` receives what is not sampled, or read as plain words
    though it may be the syntax of another tool. Raises DataError with file and line for an unknown key, an
    empty prompt, a repeated id, a seed that is not a non-negative integer, syntax of other tools that has no
    meaning here, or a file without prompts.
    """
    file = Path(path)
    text = input_files.read_text(file)
    reader = _READERS.get(file.suffix.lower(), _read_lines)
    unit = "entry" if reader in (_read_json, _read_toml) else "line"
    if reader is _read_lines and _DREAMBOOTH.search(text):
        rows = _read_dreambooth(text, file, subjects)
    else:
        rows = reader(text, file)
        if reader is _read_lines and (comments := foreign_prompts.comment_lines(text)):
            log(f"{file}: {len(comments)} lines that start with # are comments, from line {comments[0]}")
    prompts: list[Prompt] = []
    triggers = subject_triggers(subjects)
    line_of_id: dict[str, int] = {}
    for line, row in rows:
        where = f"{file}, {unit} {line}"
        row, doubtful = foreign_prompts.read_syntax(row, where, triggers)
        for message in doubtful:
            log(f"{where}: {message}")
        prompt = _parse_prompt(row, default_prompt_id(len(prompts) + 1), file, where)
        if prompt.score_text == prompt.prompt:
            prompt = replace(prompt, score_text=replace_triggers(prompt.prompt, subjects))
        questions = tuple(replace(q, text=replace_triggers(q.text, subjects)) for q in prompt.questions)
        prompt = replace(prompt, questions=questions)
        first = line_of_id.setdefault(prompt.id.casefold(), line)  # some file systems ignore case
        if first != line:
            raise DataError(f"id {prompt.id!r} is used in {unit} {first} already", where=where)
        prompts.append(prompt)
    if not prompts:
        raise DataError("the file contains no prompt", where=str(file))
    return prompts


def default_prompt_id(number: int) -> str:
    """Return the id of the `number`-th prompt (from 1) where the file gives none."""
    return f"{number:04d}"


def prompt_to_row(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a row of a JSONL prompt file; optional keys only where they say something."""
    row: dict[str, Any] = {"id": prompt.id, "prompt": prompt.prompt}
    if prompt.score_text != prompt.prompt:
        row["score_text"] = prompt.score_text
    if prompt.negative:
        row["negative"] = prompt.negative
    if prompt.images:
        paths = [str(path) for path in prompt.images]
        row["image"] = paths if len(paths) > 1 else paths[0]
    if prompt.mask:
        row["mask"] = str(prompt.mask)
    if prompt.questions:
        row["questions"] = [question_to_json(question) for question in prompt.questions]
    return row | {"seeds": list(prompt.seeds), "kind": prompt.kind}


def _read_jsonl(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{file}, line {number}")
        if not isinstance(row, dict):
            raise DataError("a line must contain one JSON object", where=f"{file}, line {number}")
        yield number, row


def _read_yaml(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, value in strict_yaml.parse_yaml_list(text, str(file)):
        if not isinstance(value, str | dict):
            where = f"{file}, line {line}"
            raise DataError("an item must be a string or a mapping", where=where, remedy="quote the prompt")
        yield line, {"prompt": value} if isinstance(value, str) else value


def _read_tsv(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in read_csv(text, str(file), delimiter="\t", has_quotes=False):
        if "Prompt" not in row:
            remedy = "PartiPrompts' first line is: Prompt, Category, Challenge, Note (separated by tabs)"
            raise DataError("no column named Prompt", where=f"{file}, line 1", remedy=remedy)
        yield number, {"prompt": row["Prompt"], "kind": row.get("Category") or DEFAULT_KIND}


def _read_dreambooth(text: str, file: Path, subjects: Subjects) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read DreamBooth's file for each subject."""
    named = [subject for subject in subjects if subject.class_noun]
    if not named:
        remedy = "name it, for example with --class-noun dog (and --trigger sks)"
        raise DataError("the prompts have placeholders for a subject", where=str(file), remedy=remedy)
    for subject in named:
        yield from _dreambooth_rows(text, subject)


def _dreambooth_rows(text: str, subject: Subject) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield one of the two lists of DreamBooth's file: the first is for things, the second for the living."""
    assert subject.class_noun
    living = subject.class_noun.split()[-1].lower() in LIVING_CLASS_NOUNS
    list_number = 0
    for line, content in enumerate(text.split("\n"), 1):
        if "prompt_list" in content:
            list_number += 1
        match = _DREAMBOOTH.search(content)
        if match and list_number == (2 if living else 1):
            prompt, score_text = (
                " ".join(match[1].format(token, subject.class_noun).split())
                for token in (subject.trigger or "", "")
            )
            yield line, {"prompt": prompt, "score_text": score_text}


def _read_lines(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, {"prompt": line}


def _read_json(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return foreign_prompts.read_json_list(text, str(file))


def _read_toml(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return foreign_prompts.read_toml(text, str(file))


_READERS = {
    ".jsonl": _read_jsonl,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".toml": _read_toml,
}


def _parse_prompt(row: dict[str, Any], default_id: str, file: Path, where: str) -> Prompt:
    """Check a row and return its prompt; image paths are relative to `file`."""
    unknown = [str(key) for key in row if key not in PROMPT_KEYS]
    if unknown:
        remedy = f"known keys: {', '.join(PROMPT_KEYS)}"
        raise DataError(f"unknown key {', '.join(map(repr, unknown))}", where=where, remedy=remedy)
    prompt = _text(row, "prompt", where).strip()
    if not prompt:
        raise DataError("the prompt is empty", where=where)
    return Prompt(
        id=_prompt_id(row.get("id", default_id), where),
        prompt=prompt,
        score_text=_text(row, "score_text", where).strip() or prompt,
        negative=_text(row, "negative", where),
        seeds=_seeds(row.get("seeds"), where),
        kind=_text(row, "kind", where).strip() or DEFAULT_KIND,
        images=_image_paths(row, file, where),
        mask=_image_path(_text(row, "mask", where), file, where),
        questions=parse_questions(row.get("questions"), where),
    )


def _prompt_id(value: Any, where: str) -> str:
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not _ID.fullmatch(name) or len(name.encode()) > MAX_ID_BYTES:
        remedy = f"use letters, digits, dots, dashes and underscores, at most {MAX_ID_BYTES} bytes as UTF-8"
        raise DataError(
            f"id {_shortened(name)} cannot be used: it becomes a file name", where=where, remedy=remedy
        )
    return name


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _image_paths(row: dict[str, Any], file: Path, where: str) -> tuple[Path, ...]:
    """Return the paths of the key `image`: one path or a list of them."""
    value = row.get("image")
    names = value if isinstance(value, list) else [_text(row, "image", where)]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"image must be a path or a list of paths, got {value!r}", where=where)
    return tuple(path for name in names if (path := _image_path(name, file, where)))


def _image_path(name: str, file: Path, where: str) -> Path | None:
    if not name:
        return None
    path = file.parent / name
    if not path.is_file():
        remedy = "give its path relative to the prompt file"
        raise DataError(f"there is no image {name!r}", where=where, remedy=remedy)
    return path


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{key} must be a string, got {value!r}", where=where)
    return value


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        return DEFAULT_SEEDS
    integers = isinstance(value, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) for seed in value
    )
    unique = integers and value and len(set(value)) == len(value)
    if not unique or not all(0 <= seed <= MAX_SEED for seed in value):
        remedy = "use a list of different non-negative integers, such as [0, 1, 2, 3]"
        raise DataError(f"seeds {value!r} cannot be used", where=where, remedy=remedy)
    return tuple(value)
