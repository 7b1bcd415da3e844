"""The folder of a published run: card, grid, thumbnail, examples, adapter files, numbers of the evaluation.

It is complete before anything is uploaded, and it is what is uploaded: nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.adapters.formats.verify import ExportedFile
from lorakit.adapters.publishing.card_facts import read_card_facts
from lorakit.adapters.publishing.export_run import card_files, export_source
from lorakit.adapters.publishing.model_card import (
    CARD_FILE,
    GRID_FILE,
    THUMBNAIL_FILE,
    CardContents,
    CardExample,
    format_card,
    is_unedited,
    numbers_of_evaluation,
)
from lorakit.adapters.publishing.sample_images import (
    MAX_EXAMPLES,
    find_sample_images,
    sample_grid,
    thumbnail,
)
from lorakit.adapters.sources import AdapterSource
from lorakit.core import checksums, output_paths, storage
from lorakit.core.errors import ConfigError, DataError

EVALUATION_FILE, LIST_FILE = "evaluation.json", "publication.json"
EXAMPLES_FOLDER = "examples"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PublishOptions:
    """Choices of who publishes: the name of the repository (OWNER/NAME), license, title, consumers."""

    repository: str | None = None
    license: str | None = None
    title: str | None = None
    consumer: str = "all"


@dataclass(frozen=True)
class Publication:
    """A folder that is ready to be published, and its files by name."""

    folder: Path
    files: tuple[str, ...]
    exported: tuple[ExportedFile, ...]
    is_evaluated: bool

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "files": list(self.files),
            "num_bytes": self.num_bytes,
            "is_evaluated": self.is_evaluated,
        }


def build_publication(
    source: AdapterSource, out: Path, options: PublishOptions, base: Path | None = None
) -> Publication:
    """Write the folder of a run's checkpoint; a folder of an earlier publication is replaced.

    A card that somebody edited stays. Raises ConfigError if `out` is another folder with files.
    """
    output_paths.check_output_path(out, "out")
    facts = read_card_facts(source)
    edited_card = _prepare_folder(out)
    images = find_sample_images(facts)
    exported = export_source(source, options.consumer, out, base=base, card=False, facts=facts)
    numbers, grid, small = numbers_of_evaluation(facts), sample_grid(images), thumbnail(images)
    if numbers is not None:
        storage.write_json(out / EVALUATION_FILE, numbers)
    if grid is not None:
        storage.save_image(out / GRID_FILE, grid)
    if small is not None:
        storage.write_bytes(out / THUMBNAIL_FILE, small)
    examples = []
    for number, image in enumerate(images[:MAX_EXAMPLES], 1):
        file = storage.copy_file(image.file, out / EXAMPLES_FOLDER / f"example-{number}.png")
        examples.append(CardExample(f"{EXAMPLES_FOLDER}/{file.name}", image.prompt))
    contents = CardContents(
        card_files(exported),
        has_grid=grid is not None,
        has_thumbnail=small is not None,
        examples=examples,
        evaluation_file=EVALUATION_FILE if numbers is not None else None,
        title=options.title,
        license=options.license,
        repository=options.repository,
    )
    storage.write_text(out / CARD_FILE, edited_card or format_card(facts, contents))
    return _listed(out, exported, is_evaluated=numbers is not None)


def _prepare_folder(out: Path) -> str | None:
    """Remove the files of an earlier publication; return the text of a card that somebody edited."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    names = read_file_list(out)
    if names is None:
        raise ConfigError(
            "this folder has other files, so nothing is written into it",
            where=str(out),
            remedy="give a new folder with --out DIR",
        )
    card = out / CARD_FILE
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    for name in names:
        storage.remove_file(out / name)
    return None if text is None or is_unedited(text) else text


def read_file_list(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return the files of a publication with their hashes, from its list; None if there is none."""
    file = folder / LIST_FILE
    if not file.is_file():
        return None
    return parse_file_list(storage.read_json(file), str(file))


def parse_file_list(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Return the files in the list of a publication; DataError for anything else."""
    files = value.get("files") if isinstance(value, dict) else None
    safe = isinstance(files, dict) and all(
        isinstance(row, dict) and not Path(name).is_absolute() and ".." not in Path(name).parts
        for name, row in files.items()
    )
    if not safe or not isinstance(files, dict):
        raise DataError("not the list of a publication", where=where, remedy="remove the file")
    return files


def _listed(out: Path, exported: Sequence[ExportedFile], *, is_evaluated: bool) -> Publication:
    """Write the list of all files with their hashes, last."""
    names = sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())
    names = [name for name in names if name != LIST_FILE and not _is_hidden(name)]
    rows = {
        name: {
            "size": (out / name).stat().st_size,
            "sha256": checksums.sha256_file(out / name),
            "git_sha1": checksums.git_blob_sha1(out / name),
        }
        for name in names
    }
    storage.write_json(out / LIST_FILE, {"format_version": FORMAT_VERSION, "files": rows})
    return Publication(out, (*names, LIST_FILE), tuple(exported), is_evaluated)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def publish_folder(source: AdapterSource) -> Path:
    """Return the default folder of a publication: `publish` in the run."""
    if source.run is None:
        raise ConfigError(
            "only a run can be published",
            where=str(source.path),
            remedy="give the folder of a run; `lorakit export` writes files of other adapters",
        )
    return source.run / "publish"
