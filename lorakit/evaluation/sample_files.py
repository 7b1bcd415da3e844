"""Image files with their prompts and seeds, in a folder of any generator: matched by id, never by order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.core import input_files, storage
from lorakit.core.errors import DataError
from lorakit.core.folders import walk_files
from lorakit.core.strict_csv import read_csv
from lorakit.data.prompts import Prompt

LISTING_FILES = ("samples.json", "samples.jsonl", "samples.csv")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".bmp", ".tif", ".tiff"}
_DEFAULT_NAME = re.compile(r"(?P<prompt_id>.+)[-_](?P<seed>\d+)")
_ROW = "prompt_id (text), seed (whole number) and file (text)"
_SHOWN_NAMES = 5  # in an error message


class SampleKey(NamedTuple):
    """Identity of an image within a variant; the images of all variants are paired by it."""

    prompt_id: str
    seed: int


@dataclass(frozen=True)
class SampleFile:
    """An image file with its prompt and seed.

    For a video, `path` is a still image to show, and `video` the file whose frames are scored.
    """

    prompt: Prompt
    seed: int
    path: Path
    video: Path | None = None

    @property
    def key(self) -> SampleKey:
        """The identity that pairs it with the images of other variants."""
        return SampleKey(self.prompt.id, self.seed)


def find_samples(
    folder: str | Path, prompts: Iterable[Prompt], pattern: str | None = None
) -> list[SampleFile]:
    """Find the images of a folder by its sample list, or by their names.

    The list is samples.json, samples.jsonl or samples.csv with prompt_id, seed, file, and video for a video.
    `pattern` describes the file names relative to the folder, such as "{prompt_id}/{seed}.png"; without it a
    name is ID, ID-SEED or ID_SEED. Raises DataError with the row or file for an image without a prompt, and
    for a file that is missing or outside the folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError("there is no such folder", where=str(root))
    prompts_by_id = {prompt.id: prompt for prompt in prompts}
    listing = next((root / name for name in LISTING_FILES if (root / name).is_file()), None)
    if pattern is None and listing:
        samples = [
            _from_listing(row, prompts_by_id, root, f"{listing}, row {number}")
            for number, row in enumerate(_read_listing(listing), 1)
        ]
    else:
        samples = _from_file_names(root, prompts_by_id, pattern)
    paths: dict[SampleKey, Path] = {}
    for sample in samples:
        if first := paths.get(sample.key):
            text = f"prompt {sample.prompt.id!r} with seed {sample.seed} has two images"
            raise DataError(text, where=f"{first.name}, {sample.path.name}")
        paths[sample.key] = sample.path
    return samples


def prompts_with_seeds(samples: Sequence[SampleFile]) -> list[Prompt]:
    """Return the prompts of the samples in their order, each with only the seeds that have an image."""
    seeds: dict[str, list[int]] = {}
    prompts: dict[str, Prompt] = {}
    for sample in samples:
        prompts.setdefault(sample.prompt.id, sample.prompt)
        seeds.setdefault(sample.prompt.id, []).append(sample.seed)
    return [replace(prompt, seeds=tuple(sorted(seeds[prompt.id]))) for prompt in prompts.values()]


def _read_listing(listing: Path) -> list[Any]:
    if listing.suffix == ".jsonl":
        rows: Any = storage.read_jsonl(listing)
    elif listing.suffix == ".csv":
        rows = [dict(row) for _, row in read_csv(input_files.read_text(listing), str(listing))]
        for row in rows:
            row["seed"] = int(row["seed"]) if str(row.get("seed")).isdigit() else row.get("seed")
    else:
        rows = storage.read_json(listing)
    if not isinstance(rows, list) or not rows:
        raise DataError("must be a list of at least one {prompt_id, seed, file}", where=str(listing))
    return rows


def _from_listing(row: Any, prompts: Mapping[str, Prompt], root: Path, where: str) -> SampleFile:
    types = {"prompt_id": str, "seed": int, "file": str}
    if not isinstance(row, dict) or any(not isinstance(row.get(key), type_) for key, type_ in types.items()):
        raise DataError(f"a row needs {_ROW}", where=where)
    if row["prompt_id"] not in prompts:
        raise DataError(f"the prompt file has no id {row['prompt_id']!r}", where=where)
    video = row.get("video") or None
    if video is not None and not isinstance(video, str):
        raise DataError("`video` must be the name of a file", where=where, remedy="or leave it out")
    return SampleFile(
        prompts[row["prompt_id"]],
        row["seed"],
        resolve_sample_path(root, row["file"], where),
        resolve_sample_path(root, video, where) if video else None,
    )


def resolve_sample_path(root: Path, name: str, where: str) -> Path:
    """Return the file with a relative name in `root`; DataError if it is missing or outside `root`."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{name!r} lies outside the folder", where=where)
    if not path.is_file():
        raise DataError(f"{name!r} does not exist", where=where)
    return path


def _from_file_names(root: Path, prompts: Mapping[str, Prompt], pattern: str | None) -> list[SampleFile]:
    files = sorted(
        file for file in walk_files(root) if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if pattern is None:
        files = [file for file in files if file.parent == root]
    name_pattern = _compile_pattern(pattern) if pattern else None
    samples, unmatched = [], []
    for file in files:
        name = file.relative_to(root).as_posix()
        key = _match_name(name, prompts, name_pattern)
        if key is None:
            unmatched.append(name)
        else:
            samples.append(SampleFile(prompts[key.prompt_id], key.seed, file))
    if unmatched or not samples:
        remedy = (
            f"name them ID-SEED.png with the ids of the prompt file ({', '.join(list(prompts)[:3])}, ...), "
            "use --pattern, or list them in samples.json: [{prompt_id, seed, file}, ...]"
        )
        more = len(unmatched) - _SHOWN_NAMES
        names = ", ".join(unmatched[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        text = f"images without a prompt: {names}" if unmatched else "the folder holds no images"
        raise DataError(text, where=str(root), remedy=remedy)
    return samples


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    if "{prompt_id}" not in pattern:
        remedy = 'for example "{prompt_id}/{seed}.png"'
        raise DataError(f"the pattern {pattern!r} has no {{prompt_id}}", where="--pattern", remedy=remedy)
    escaped = re.escape(pattern)
    escaped = escaped.replace(r"\{prompt_id\}", "(?P<prompt_id>.+?)").replace(r"\{seed\}", r"(?P<seed>\d+)")
    return re.compile(escaped if Path(pattern).suffix else escaped + r"\.\w+")


def _match_name(
    name: str, prompts: Mapping[str, Prompt], name_pattern: re.Pattern[str] | None
) -> SampleKey | None:
    """Return the prompt id and seed that a file's name holds; None if no prompt has the id."""
    if name_pattern is None:
        stem = Path(name).stem
        if stem in prompts:
            return SampleKey(stem, 0)
        match = _DEFAULT_NAME.fullmatch(stem)
    else:
        match = name_pattern.fullmatch(name)
    if match is None or match["prompt_id"] not in prompts:
        return None
    return SampleKey(match["prompt_id"], int(match.groupdict().get("seed") or 0))
