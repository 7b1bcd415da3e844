"""Pictures with their prompts and seeds, found in a folder of any generator: paired by id, never by order."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.data.prompts import Prompt

LISTING_FILES = ("samples.json", "samples.jsonl", "samples.csv")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".bmp", ".tif", ".tiff"}
_OWN_NAME = re.compile(r"(?P<id>.+)[-_](?P<seed>\d+)")
_ROW = "prompt_id (text), seed (whole number) and file (text)"


@dataclass(frozen=True)
class SampleFile:
    """A file with the prompt and seed that it was made from. Of a clip, `path` is a still to show, and `clip`
    the animated picture that is scored."""

    prompt: Prompt
    seed: int
    path: Path
    clip: Path | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What pairs it with the pictures of other arms."""
        return self.prompt.id, self.seed


def find_samples(
    folder: str | Path, prompts: Iterable[Prompt], pattern: str | None = None
) -> list[SampleFile]:
    """The pictures of a folder, by its list or by their names.

    The list is samples.json, .jsonl or .csv with prompt_id, seed and file, and clip where there is one.
    `pattern` says how files are named, such as "{id}/{seed}.png" relative to the folder; without one, a name
    is ID, ID-SEED or ID_SEED.
    Raises DataError naming the row or file for anything that has no prompt, and for a file that is missing or
    outside the folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError("there is no such folder", where=str(root))
    known = {prompt.id: prompt for prompt in prompts}
    listing = next((root / name for name in LISTING_FILES if (root / name).is_file()), None)
    if pattern is None and listing:
        found = [
            _from_listing(row, known, root, f"{listing}, row {n}") for n, row in enumerate(_rows(listing), 1)
        ]
    else:
        found = _from_file_names(root, known, pattern)
    seen: dict[tuple[str, int], Path] = {}
    for picture in found:
        if first := seen.get(picture.key):
            text = f"prompt {picture.prompt.id!r} with seed {picture.seed} has two pictures"
            raise DataError(text, where=f"{first.name}, {picture.path.name}")
        seen[picture.key] = picture.path
    return found


def prompts_with_seeds(pictures: Sequence[SampleFile]) -> list[Prompt]:
    """The prompts of these pictures, in order, with just the seeds that there are."""
    seeds: dict[str, list[int]] = {}
    prompts: dict[str, Prompt] = {}
    for picture in pictures:
        prompts.setdefault(picture.prompt.id, picture.prompt)
        seeds.setdefault(picture.prompt.id, []).append(picture.seed)
    return [replace(prompt, seeds=tuple(sorted(seeds[prompt.id]))) for prompt in prompts.values()]


def _rows(listing: Path) -> list[dict[str, Any]]:
    if listing.suffix == ".jsonl":
        rows: Any = storage.read_jsonl(listing)
    elif listing.suffix == ".csv":
        with open(listing, encoding="utf-8-sig", newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
        for row in rows:
            row["seed"] = int(row["seed"]) if str(row.get("seed")).isdigit() else row.get("seed")
    else:
        rows = storage.read_json(listing)
    if not isinstance(rows, list) or not rows:
        raise DataError("must be a list of at least one {prompt_id, seed, file}", where=str(listing))
    return rows


def _from_listing(row: Any, known: Mapping[str, Prompt], root: Path, where: str) -> SampleFile:
    keys = {"prompt_id": str, "seed": int, "file": str}
    if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in keys.items()):
        raise DataError(f"a row needs {_ROW}", where=where)
    if row["prompt_id"] not in known:
        raise DataError(f"the prompt file has no id {row['prompt_id']!r}", where=where)
    film = row.get("clip") or None
    if film is not None and not isinstance(film, str):
        raise DataError("`clip` names the file of a clip, or is left out", where=where)
    path = resolve_sample_path(root, row["file"], where)
    clip = resolve_sample_path(root, film, where) if film else None
    return SampleFile(known[row["prompt_id"]], row["seed"], path, clip)


def resolve_sample_path(root: Path, name: str, where: str) -> Path:
    """A file below `root`, by its relative name."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{name!r} lies outside the folder", where=where)
    if not path.is_file():
        raise DataError(f"{name!r} does not exist", where=where)
    return path


def _from_file_names(root: Path, known: Mapping[str, Prompt], pattern: str | None) -> list[SampleFile]:
    files = sorted(
        file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if pattern is None:
        files = [file for file in files if file.parent == root]
    shape = _compile_pattern(pattern) if pattern else None
    found, strangers = [], []
    for file in files:
        name = file.relative_to(root).as_posix()
        match = _match(name, known, shape)
        if match is None:
            strangers.append(name)
        else:
            found.append(SampleFile(known[match[0]], match[1], file))
    if strangers or not found:
        remedy = (
            f"name them ID-SEED.png by the prompt file's ids ({', '.join(list(known)[:3])}, ...), give"
            " --pattern, or list them in samples.json: [{prompt_id, seed, file}, ...]"
        )
        shown = ", ".join(strangers[:5]) + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")
        text = f"pictures without a prompt: {shown}" if strangers else "the folder holds no pictures"
        raise DataError(text, where=str(root), remedy=remedy)
    return found


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    if "{id}" not in pattern:
        raise DataError(f"the pattern {pattern!r} has no {{id}}", remedy='for instance "{id}/{seed}.png"')
    escaped = re.escape(pattern).replace(r"\{id\}", "(?P<id>.+?)").replace(r"\{seed\}", r"(?P<seed>\d+)")
    return re.compile(escaped if Path(pattern).suffix else escaped + r"\.\w+")


def _match(name: str, known: Mapping[str, Prompt], shape: re.Pattern[str] | None) -> tuple[str, int] | None:
    """(prompt id, seed) of a file's name; None when no prompt has it."""
    if shape is None:
        stem = Path(name).stem
        if stem in known:
            return stem, 0
        found = _OWN_NAME.fullmatch(stem)
    else:
        found = shape.fullmatch(name)
    if found is None or found["id"] not in known:
        return None
    return found["id"], int(found.groupdict().get("seed") or 0)
