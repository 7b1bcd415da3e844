"""Image files with their prompts and seeds, in a folder of any generator: never matched by their order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.core import input_files, storage
from lorakit.core.errors import DataError
from lorakit.core.folders import walk_files
from lorakit.core.strict_csv import read_csv
from lorakit.data.prompts import Prompt
from lorakit.data.subjects import Subject
from lorakit.evaluation.image_prompts.find import ImagePrompts, names_text, number_seeds
from lorakit.evaluation.image_prompts.names import compile_pattern

LISTING_FILES = ("samples.json", "samples.jsonl", "samples.csv")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".bmp", ".tif", ".tiff"}
_ROW = "prompt_id (text), seed (whole number) and file (text)"
_LOGGER = logging.getLogger("lorakit")


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
    step: str | None = None
    """Training step (500) or epoch (e000003) in the name, for samples of a training."""

    @property
    def key(self) -> SampleKey:
        """The identity that pairs it with the images of other variants."""
        return SampleKey(self.prompt.id, self.seed)


def find_samples(
    folder: str | Path,
    prompts: Iterable[Prompt] = (),
    pattern: str | None = None,
    *,
    subject: Subject | None = None,
    log: Callable[[str], None] = _LOGGER.warning,
) -> list[SampleFile]:
    """Find the images of a folder by its sample list, a pattern, what they carry, or their names.

    The list is samples.json, samples.jsonl or samples.csv with prompt_id, seed, file, and video for a video.
    `pattern` describes the file names relative to the folder, such as "{prompt_id}/{seed}.png"; without it a
    name is ID, ID-SEED or ID_SEED, or one of a known tool, and metadata and text files beside the images are
    read. Without `prompts`, the prompts are those that the images carry; class nouns then replace the
    subject's trigger in what they are scored against. `log` receives what is uncertain or left out.

    Raises DataError with the row or file for a file that is missing or outside the folder, two images of one
    prompt and seed, and if fewer than half of the images have a prompt.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError("there is no such folder", where=str(root))
    prompt_list = list(prompts)
    listing = next((root / name for name in LISTING_FILES if (root / name).is_file()), None)
    if pattern is None and listing and prompt_list:
        by_id = {prompt.id: prompt for prompt in prompt_list}
        samples = [
            _from_listing(row, by_id, root, f"{listing}, row {number}")
            for number, row in enumerate(_read_listing(listing), 1)
        ]
    else:
        name_pattern = compile_pattern(pattern) if pattern else None
        samples = _from_images(root, ImagePrompts(prompt_list, name_pattern, subject), log)
    paths: dict[tuple[SampleKey, str | None], Path] = {}
    for sample in samples:
        if first := paths.get((sample.key, sample.step)):
            text = f"prompt {sample.prompt.id!r} with seed {sample.seed} has two images"
            remedy = "score images of different settings in folders of their own"
            raise DataError(text, where=f"{first}, {sample.path}", remedy=remedy)
        paths[sample.key, sample.step] = sample.path
    return samples


def prompts_with_seeds(samples: Sequence[SampleFile]) -> list[Prompt]:
    """Return the prompts of the samples in their order, each with only the seeds that have an image."""
    seeds: dict[str, list[int]] = {}
    prompts: dict[str, Prompt] = {}
    for sample in samples:
        prompts.setdefault(sample.prompt.id, sample.prompt)
        seeds.setdefault(sample.prompt.id, []).append(sample.seed)
    return [replace(prompt, seeds=tuple(sorted(set(seeds[prompt.id])))) for prompt in prompts.values()]


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


def _from_images(root: Path, image_prompts: ImagePrompts, log: Callable[[str], None]) -> list[SampleFile]:
    """Return the images of a folder with the prompts that their names or contents give."""
    result = image_prompts.find(root, _image_files(root, image_prompts.pattern is not None, log))
    unmatched = [name for names in result.unmatched.values() for name in names]
    if not result.images or len(unmatched) > len(result.images):
        raise _without_prompts(root, result.unmatched, image_prompts)
    for note in result.notes:
        log(note)
    for reason, names in result.unmatched.items():
        log(f"Images without a prompt are not scored: {names_text(sorted(names))} ({reason}).")
    images = number_seeds(result.images, log)
    return [SampleFile(image.prompt, image.seed or 0, image.path, step=image.step) for image in images]


def _image_files(root: Path, with_subfolders: bool, log: Callable[[str], None]) -> list[Path]:
    """Return the images in a folder; those of its subfolders with a pattern, or if it has none itself."""
    files = sorted(
        file for file in walk_files(root) if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    top = [file for file in files if file.parent == root]
    if with_subfolders or not top:
        return files
    if len(top) < len(files):
        log(f"{len(files) - len(top)} images in subfolders are not scored (--pattern reaches them).")
    return top


def _without_prompts(
    root: Path, unmatched: Mapping[str, Sequence[str]], image_prompts: ImagePrompts
) -> DataError:
    """Return the error for a folder most of whose images have no prompt."""
    if not unmatched:
        remedy = f"give a folder with images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        return DataError("the folder holds no images", where=str(root), remedy=remedy)
    names = sorted(name for group in unmatched.values() for name in group)
    reasons = "; ".join(unmatched)
    ids = ", ".join(prompt.id for prompt in image_prompts.index.prompts[:3])
    named = f"name them ID-SEED.png with the ids of the prompt file ({ids}, ...), " if ids else ""
    remedy = (
        f'{named or "give --prompts FILE, "}use --pattern, such as "{{index}}_*" or "{{prompt}}-{{seed}}",'
        " or list them in samples.json: [{prompt_id, seed, file}, ...]"
    )
    return DataError(
        f"images without a prompt: {names_text(names)} ({reasons})", where=str(root), remedy=remedy
    )
