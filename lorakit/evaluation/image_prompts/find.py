"""The prompt of each image in a folder, with notes about what is uncertain, contradictory or left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorakit.core import input_files
from lorakit.core.errors import DataError
from lorakit.core.prompt_syntax import plain_words
from lorakit.data.prompts import Prompt, default_prompt_id
from lorakit.data.subjects import Subject, replace_triggers
from lorakit.evaluation.image_prompts.generators import ImageText, parse_sidecar, read_prompt
from lorakit.evaluation.image_prompts.match import Match, PromptIndex, normal_text
from lorakit.evaluation.image_prompts.names import ImageName, is_grid, read_pattern, read_scheme
from lorakit.imaging.image_texts import read_image_texts

MAX_NAMES = 5  # in a sentence
_ID_AND_SEED = re.compile(r"(?P<prompt_id>.+)[-_](?P<seed>\d+)")
_SIDECARS = (".txt", ".prompt")


@dataclass(frozen=True)
class FoundImage:
    """An image with its prompt; `seed` is None if nothing says it, `step` is as it is written in the name."""

    path: Path
    name: str
    prompt: Prompt
    seed: int | None = None
    step: str | None = None
    fixed_seed: bool = True
    """False for a seed that the images of one batch share."""


@dataclass
class FoundImages:
    """The images of a folder that have a prompt, and those that have none, by reason."""

    images: list[FoundImage] = field(default_factory=list)
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class ImagePrompts:
    """Finds the prompts of images; without a prompt file, the prompts are those that the images carry."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        pattern: re.Pattern[str] | None = None,
        subject: Subject | None = None,
    ) -> None:
        self.index, self.pattern = PromptIndex(prompts), pattern
        self.has_file = bool(prompts)
        self.subject = subject or Subject()
        self._new: dict[str, Prompt] = {}
        self._sources = Counter[str]()
        self._contradictions: list[str] = []
        self._by_part: list[str] = []

    def find(self, root: Path, files: Iterable[Path]) -> FoundImages:
        """Return the images of a folder with their prompts."""
        result, grids = FoundImages(), []
        for path in files:
            name = path.relative_to(root).as_posix()
            if self.pattern is None and is_grid(name):
                grids.append(name)
                continue
            image = self._find_one(path, name)
            if isinstance(image, str):
                result.unmatched.setdefault(image, []).append(name)
            else:
                result.images.append(image)
        result.notes += self._notes(grids)
        return result

    def _find_one(self, path: Path, name: str) -> FoundImage | str:
        """Return the image, or the reason why it has no prompt."""
        named = self._named(path, name)
        text = read_prompt(read_image_texts(path)) or _sidecar(path)
        match = self._of_name(named) if named else None
        of_text = self._of_text(text) if text else None
        if match and match.prompt and of_text and self.has_file:
            match = self._settle(name, match, of_text, named, text)
        elif of_text and of_text.prompt and (match is None or match.prompt is None):
            match = of_text
        if match is None and self.pattern is not None and of_text is None:
            return "their names do not have the pattern, and they carry no prompt"
        if match is None and text is None and self.has_file:
            match = self.index.of_words(Path(name).stem)
            named = ImageName("words in their names") if match.prompt else None
        if match is None or match.prompt is None:
            return (of_text or match or Match(None, reason="it carries no prompt")).reason
        self._count(name, match, named, of_text, text)
        seed = named.seed if named and named.seed is not None else text.seed if text else None
        fixed = bool(named and named.seed is not None)
        return FoundImage(path, name, match.prompt, seed, named.step if named else None, fixed)

    def _named(self, path: Path, name: str) -> ImageName | None:
        """Return what the name says by the pattern, by ids of the prompt file, or by a known scheme."""
        if self.pattern is not None:
            return read_pattern(name, self.pattern)
        stem = path.stem
        if stem in self.index.by_id:
            return ImageName("ids in their names", prompt_id=stem, seed=0)
        match = _ID_AND_SEED.fullmatch(stem)
        if match and match["prompt_id"] in self.index.by_id:
            return ImageName("ids in their names", prompt_id=match["prompt_id"], seed=int(match["seed"]))
        return read_scheme(name)

    def _of_name(self, named: ImageName) -> Match:
        if named.prompt_id is not None:
            prompt = self.index.by_id.get(named.prompt_id)
            return Match(prompt, reason=f"the prompt file has no id {named.prompt_id!r}")
        if named.index is not None:
            if not self.has_file:
                return Match(
                    None, reason=f"by {named.scheme} it has the number of a prompt: give --prompts FILE"
                )
            return self.index.at(named.index)
        return self.index.of_words(named.words or "")

    def _of_text(self, text: ImageText) -> Match:
        if self.has_file:
            return self.index.of_text(text.prompt)
        key = normal_text(text.prompt)
        if key not in self._new:
            words = plain_words(text.prompt)
            scored = replace_triggers(words, [self.subject])
            prompt_id = default_prompt_id(len(self._new) + 1)
            self._new[key] = Prompt(prompt_id, words or text.prompt, scored or text.prompt, text.negative)
        return Match(self._new[key])

    def _settle(
        self, name: str, match: Match, of_text: Match, named: ImageName | None, text: ImageText | None
    ) -> Match:
        """Return the prompt where name and text speak of two: the pattern's, else the one in the image."""
        assert match.prompt is not None
        assert named is not None
        assert text is not None
        if of_text.prompt is not None and of_text.prompt.id == match.prompt.id:
            return match
        short = text.prompt if len(text.prompt) <= 60 else f"{text.prompt[:57]}..."
        by_name = f"{named.scheme}: {match.prompt.id}"
        self._contradictions.append(f"{name} ({text.source}: {short!r}; {by_name})")
        if self.pattern is None and of_text.prompt is not None and of_text.is_exact:
            return of_text
        return match

    def _count(
        self,
        name: str,
        match: Match,
        named: ImageName | None,
        of_text: Match | None,
        text: ImageText | None,
    ) -> None:
        """Count where prompts come from, and remember the uncertain ones."""
        from_text = of_text is not None and of_text.prompt is match.prompt and text is not None
        self._sources[text.source if from_text and text else named.scheme if named else "?"] += 1
        if not match.is_exact:
            self._by_part.append(name)

    def _notes(self, grids: list[str]) -> list[str]:
        notes = []
        if set(self._sources) - {"ids in their names", "--pattern"}:
            parts = ", ".join(f"{source} ({number})" for source, number in self._sources.most_common())
            notes.append(f"Prompts of the images come from: {parts}.")
        if self._contradictions:
            number = len(self._contradictions)
            used = "the pattern decides" if self.pattern else "an equal text in the image decides"
            text = (
                f"{number} {'image has' if number == 1 else 'images have'} another prompt than the name says"
            )
            notes.append(f"{text} ({used}): {names_text(self._contradictions)}.")
        if self._by_part:
            number = len(self._by_part)
            text = f"{number} {'image was' if number == 1 else 'images were'} matched by a part of the prompt"
            notes.append(f"{text}, which is uncertain: {names_text(self._by_part)}.")
        if grids:
            notes.append(f"Grids of several images are not scored: {names_text(grids)}.")
        return notes

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of the file, or those that the images carry."""
        return self.index.prompts or list(self._new.values())


def names_text(names: Sequence[str]) -> str:
    """Return the first names of a list, and the number of the others."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def number_seeds(images: Sequence[FoundImage], log: Callable[[str], None]) -> list[FoundImage]:
    """Return the images with a seed each: the next free number where none is known, or a batch shares one."""
    used: dict[tuple[str, str | None], set[int]] = {}
    for image in images:
        if image.fixed_seed and image.seed is not None:
            used.setdefault((image.prompt.id, image.step), set()).add(image.seed)
    numbered, result = 0, []
    for image in images:
        used_seeds = used.setdefault((image.prompt.id, image.step), set())
        seed = image.seed
        if not image.fixed_seed and (seed is None or seed in used_seeds):
            seed = next(
                number for number in range(len(images) + len(used_seeds) + 1) if number not in used_seeds
            )
            numbered += 1
        used_seeds.add(seed or 0)
        result.append(FoundImage(image.path, image.name, image.prompt, seed or 0, image.step))
    if numbered:
        log(
            f"{numbered} of {len(images)} images have no seed of their own: they are numbered in the order of"
            " their names, and cannot be paired by seed with other folders."
        )
    return result


def _sidecar(path: Path) -> ImageText | None:
    """Return the prompt in a text file beside an image."""
    for suffix in _SIDECARS:
        file = path.with_suffix(suffix)
        if not file.is_file():
            continue
        try:
            text = input_files.read_text(file)
        except DataError:
            continue
        source = f"files {suffix} beside them"
        try:
            return parse_sidecar(text, source)
        except DataError:  # an option that no prompt of ours can have
            return ImageText(" ".join(text.split()).split(" --")[0], source)
    return None
