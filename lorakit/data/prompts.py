"""Prompts to sample, and the texts to score their images against; `load_prompts` reads them from a file.

The forms of prompt files are in prompt_files/, their keys are `PROMPT_KEYS`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorakit.core.errors import DataError
from lorakit.core.nearest import did_you_mean
from lorakit.core.words import has_word
from lorakit.data.prompt_files import values
from lorakit.data.prompt_files.forms import find_form
from lorakit.data.prompt_files.keys import OWN_NAME, PROMPT_KEYS
from lorakit.data.prompt_files.options import with_options
from lorakit.data.prompt_files.row import PromptRow, PromptText, Values
from lorakit.data.prompt_files.syntax import read_syntax
from lorakit.data.prompt_files.unknown import read_prompt_text
from lorakit.data.prompt_files.values import DEFAULT_SEEDS
from lorakit.data.questions import Question, parse_questions, question_to_json
from lorakit.data.subjects import Subjects, replace_triggers, subject_triggers

if TYPE_CHECKING:
    from PIL import Image

_LOGGER = logging.getLogger("lorakit")
DEFAULT_KIND = "subject"
PROMPT_SETTINGS = ("width", "height", "aspect_ratio", "num_inference_steps", "guidance_scale")
SUBJECT_KINDS = ("subject", "recontextualization", "property", "style", "view")
CLASS_KINDS, UNRELATED_KINDS = ("class",), ("unrelated",)
Role = Literal["subject", "class", "unrelated"]
MAX_ID_BYTES = 100  # an id becomes part of a file name, which has at most 255 bytes
_ID = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True)
class Prompt:
    """One prompt. `score_text` is the text to score its images against: class noun instead of trigger.

    `kind` groups prompts in reports: "subject", "unrelated", or any name. `images` (the key `image`) are the
    conditioning images of the prompt: those that the base model edits, or the one of img2img, ControlNet or
    IP-Adapter. `mask` is white where the base model fills in. `questions` can be answered with yes or no by
    looking at an image; a model answers them in an evaluation. Size, `num_inference_steps` and
    `guidance_scale` come before those of the command or recipe; `aspect_ratio` (such as 3:2) keeps the area.
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
    width: int | None = None
    height: int | None = None
    aspect_ratio: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None

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
    """Read a prompt file; its content decides which of the forms in prompt_files/forms.py it has.

    The subjects fill the placeholders of DreamBooth's list, and `[trigger]`; elsewhere class nouns replace
    their triggers in rows without a `score_text`. `log` receives what is not sampled or used, and what is
    read as plain words though it may be the syntax of another tool.

    Raises DataError with file and line for an unknown key or option, a value that cannot be used, an empty
    prompt, a repeated id, syntax of other tools that has no meaning here, text that holds no prompt, or an
    empty file.
    """
    file = Path(path)
    source = PromptText(read_prompt_text(str(file)), file, subjects, log)
    prompts: list[Prompt] = []
    place_of_id: dict[str, str] = {}
    unused = Counter[str]()
    for row in find_form(source).read(source):
        prompt, names = _read_row(row, source, default_prompt_id(len(prompts) + 1))
        unused.update(names)
        first = place_of_id.setdefault(prompt.id.casefold(), row.place)  # some file systems ignore case
        if first != row.place:
            raise DataError(f"id {prompt.id!r} is used in {first} already", where=f"{file}, {row.place}")
        prompts.append(prompt)
    if not prompts:
        raise DataError("the file contains no prompt", where=str(file), remedy="write one prompt a line")
    if unused:
        counts = ", ".join(f"{name} ({number}x)" for name, number in unused.most_common())
        log(f"{file}: not used, for they have no equal in lorakit: {counts}")
    return prompts


def _read_row(row: PromptRow, source: PromptText, default_id: str) -> tuple[Prompt, tuple[str, ...]]:
    """Return the prompt of a row, and the names of what is not used."""
    where, subjects = f"{source.where}, {row.place}", source.subjects
    cells, more = with_options(row.values, where)
    cells = row.shared | cells
    cells, doubtful = read_syntax(cells, where, subject_triggers(subjects))
    for message in doubtful:
        source.log(f"{where}: {message}")
    prompt = _parse_prompt(cells, default_id, source.file, where)
    if prompt.score_text == prompt.prompt:
        prompt = replace(prompt, score_text=replace_triggers(prompt.prompt, subjects))
    questions = tuple(replace(q, text=replace_triggers(q.text, subjects)) for q in prompt.questions)
    return replace(prompt, questions=questions), row.unused + more


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
    for key in PROMPT_SETTINGS:
        if (value := getattr(prompt, key)) is not None:
            row[key] = value
    return row | {"seeds": list(prompt.seeds), "kind": prompt.kind}


def _parse_prompt(row: Values, default_id: str, file: Path, where: str) -> Prompt:
    """Check a row and return its prompt; image paths are relative to `file`."""
    known = (*PROMPT_KEYS, "size")
    if unknown := [str(key) for key in row if key not in known]:
        names = ", ".join(map(repr, unknown))
        remedy = f"known keys: {', '.join(PROMPT_KEYS)}"
        message = f"unknown key {names}{did_you_mean(unknown[0], OWN_NAME)}"
        raise DataError(message, where=where, remedy=remedy)
    prompt = _text(row, "prompt", where).strip()
    if not prompt:
        raise DataError("the prompt is empty", where=where, remedy="write its text, or delete it")
    width, height = values.read_size(row, where)
    return Prompt(
        id=_prompt_id(row.get("id", default_id), where),
        prompt=prompt,
        score_text=_text(row, "score_text", where).strip() or prompt,
        negative=_text(row, "negative", where).strip(),
        seeds=values.read_seeds(row.get("seeds"), where),
        kind=_text(row, "kind", where).strip() or DEFAULT_KIND,
        images=_image_paths(row, file, where),
        mask=_image_path(_text(row, "mask", where), file, where),
        questions=parse_questions(row.get("questions"), where),
        width=width,
        height=height,
        aspect_ratio=values.read_aspect_ratio(row.get("aspect_ratio"), where),
        num_inference_steps=values.read_steps(row.get("num_inference_steps"), where),
        guidance_scale=values.read_guidance(row.get("guidance_scale"), where),
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


def _image_paths(row: Values, file: Path, where: str) -> tuple[Path, ...]:
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


def _text(row: Values, key: str, where: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        remedy = "write one text in quotes"
        raise DataError(f"{key} must be a string, got {_shortened(value)}", where=where, remedy=remedy)
    return value
