"""Parts of the sources of an import: tables, archives, plain files of folders, each with its subfolder."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from data_tools.captions import columns
from data_tools.formats import tar_archives, zip_archives
from data_tools.formats.column_roles import image_kind
from data_tools.formats.left_out import LeftOut
from data_tools.formats.members import TABLE_SUFFIXES, reason_to_leave_out
from data_tools.formats.source_folder import SourceFolder
from data_tools.formats.table_rows import iter_rows
from data_tools.listing import IMAGE_SUFFIXES
from lorakit import manifest
from lorakit.core import dataset_paths
from lorakit.core.errors import ConfigError, DataError

Kind = Literal["tables", "zip", "tar", "files"]
SPLITS = frozenset(["train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"])
_SHARD = re.compile(r"([A-Za-z][A-Za-z_]*)-\d+(?:-of-\d+)?\..+")
_TAR = re.compile(r".+\.(?:tar(?:\.(?:gz|bz2|xz))?|tgz|tbz2|txz)$", re.IGNORECASE)
_TOP = PurePosixPath()
_NUM_FIRST_ROWS = 16  # which show what the columns of a table hold
_BESIDE_TABLES = "beside tables, which hold the images; give its folder as a source of its own"
_NO_IMAGES = (
    "a table without images or names of files; captions are read from metadata.parquet or metadata.csv"
    " beside the images, with the columns file_name and text"
)
_NO_ARCHIVE = (
    "give a folder, a .zip, a .tar (also .gz, .bz2, .xz), a .parquet or .arrow file, or a saved dataset"
)


@dataclass(frozen=True)
class Part:
    """Tables, one archive, or the plain files of a folder; `prefix` is their subfolder in the dataset."""

    kind: Kind
    path: Path
    folder: SourceFolder
    files: tuple[tuple[str, Path], ...] = ()  # (split, table), or (relative name, file)
    prefix: PurePosixPath = _TOP

    def num_bytes(self) -> int:
        """Return the size of the files of the part."""
        paths = [path for _, path in self.files] or [self.path]
        return sum(path.stat().st_size for path in paths)


def plan_parts(
    sources: Sequence[Path], left_out: LeftOut, *, splits: Sequence[str] = (), follow_links: bool = False
) -> list[Part]:
    """Return the parts of all sources; files of folders that belong to none are added to `left_out`.

    Raises `ConfigError` for a source that cannot be read, and for a split that no source has.
    """
    names: set[str] = set()
    parts: list[Part] = []
    for source in sources:
        own = list(_source_parts(source, left_out, follow_links=follow_links))
        outer = PurePosixPath(_unique(_stem(source), names)) if len(sources) > 1 else _TOP
        parts += [replace(part, prefix=outer / part.prefix) for part in own]
    return _choose_splits(parts, splits, left_out) if splits else parts


def _source_parts(source: Path, left_out: LeftOut, *, follow_links: bool) -> Iterator[Part]:
    if not source.exists():
        raise ConfigError("the file or folder does not exist", where=str(source), remedy="correct the path")
    if source.is_dir():
        yield from _folder_parts(SourceFolder(source, follow_links=follow_links), left_out)
        return
    if not source.is_file():
        message = "a named pipe, socket or device cannot be imported"
        raise ConfigError(message, where=str(source), remedy="give a file or a folder")
    folder = SourceFolder(source.parent, follow_links=follow_links)
    if source.suffix.lower() in TABLE_SUFFIXES:
        yield Part("tables", source, folder, (("", source),))
    elif zip_archives.is_zip(source):
        yield Part("zip", source, folder)
    elif tar_archives.is_tar(source):
        yield Part("tar", source, folder)
    else:
        raise ConfigError("lorakit cannot read this archive or table", where=str(source), remedy=_NO_ARCHIVE)


def _folder_parts(folder: SourceFolder, left_out: LeftOut) -> Iterator[Part]:
    """Yield the tables of a folder, else its archives and its other files.

    Beside images, a table counts only if it has images of its own or names of files. With names, it describes
    images of the folder, so that the others are imported too; beside images of its own, they are previews.
    """
    files = list(folder.files(left_out))
    if any(name == manifest.MANIFEST_FILE for name, _ in files):
        yield Part("files", folder.root, folder, tuple(_dataset_files(folder.root, files, left_out)))
        return
    tables = [(name, path) for name, path in files if _is_table(name, path)]
    are_described = False
    if tables and any(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name, _ in files):
        kinds = {table: _image_kind(table[1], folder) for table in tables}
        without = [table for table in tables if kinds[table] is None]
        left_out.extend("file", ((name, _NO_IMAGES) for name, _ in without))
        tables, files = ([pair for pair in pairs if pair not in without] for pairs in (tables, files))
        are_described = all(kinds[table] == "path" for table in tables)
    if tables:
        labels = _split_labels([name for name, _ in tables])
        paths = (path for _, path in tables)
        yield Part("tables", folder.root, folder, tuple(zip(labels, paths, strict=True)))
        files = [pair for pair in files if pair not in tables]
        if not are_described:
            left_out.extend("file", ((name, _reason_beside_tables(name, path)) for name, path in files))
            return
    yield from _plain_parts(files, folder)


def _plain_parts(files: Sequence[tuple[str, Path]], folder: SourceFolder) -> Iterator[Part]:
    """Yield the archives among the files of a folder, and its other files."""
    archives = {name: path for name, path in files if _is_archive(name, path)}
    others = [(name, path) for name, path in files if name not in archives]
    has_images = any(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name, _ in others)
    names: set[str] = set()
    for name, path in archives.items():
        kind: Kind = "tar" if _TAR.fullmatch(name) else "zip"
        inner = PurePosixPath(name).parent / _unique(_stem(path), names)
        prefix = inner if len(archives) > 1 or has_images else _TOP
        yield Part(kind, path, folder, prefix=prefix)
    if others or not archives:
        yield Part("files", folder.root, folder, tuple(others))


def _dataset_files(
    root: Path, files: Sequence[tuple[str, Path]], left_out: LeftOut
) -> Iterator[tuple[str, Path]]:
    """Yield the files of a dataset of lorakit; its images may be in another folder."""
    images = dataset_paths.image_folder(root)
    if images != root:
        yield from SourceFolder(images).files(left_out)
        # Its metadata.jsonl is generated; the user's own may be beside the images.
        own = (dataset_paths.IMAGES_FILE, manifest.METADATA_FILE)
        files = [(name, path) for name, path in files if name not in own]
    yield from files


def _is_table(name: str, path: Path) -> bool:
    """Return True for a table of images; Hugging Face's caches and ImageFolder's metadata are none."""
    file = PurePosixPath(name)
    if file.suffix.lower() not in TABLE_SUFFIXES or file.name.startswith(("metadata.", "cache-")):
        return False
    is_saved = (path.parent / "state.json").is_file() or (path.parent / "dataset_info.json").is_file()
    return file.suffix.lower() != ".arrow" or is_saved or not any(path.parent.glob("*.json"))


def _image_kind(table: Path, folder: SourceFolder) -> str | None:
    """Return "image" for a table with images, and for one that cannot be read; "path", "address" or None."""
    try:
        rows = list(itertools.islice(iter_rows(table, columns.check_column_names), _NUM_FIRST_ROWS))
    except DataError:
        return "image"  # the import then says what is wrong with it
    return image_kind(rows, functools.partial(folder.find, beside=table.parent))


def _is_archive(name: str, path: Path) -> bool:
    if _TAR.fullmatch(name):
        return tar_archives.is_tar(path)
    return name.lower().endswith((".zip", ".cbz")) and zip_archives.is_zip(path)


def _reason_beside_tables(name: str, path: Path) -> str:
    with open(path, "rb") as file:
        return reason_to_leave_out(name, file.read(16)) or _BESIDE_TABLES


# ---- splits ------------------------------------------------------------------------------------------------


def _split_labels(names: Sequence[str]) -> list[str]:
    """Return the split of each table: its folders and the start of its name, without what all have."""
    labels = []
    for name in names:
        file = PurePosixPath(name)
        match = _SHARD.fullmatch(file.name)
        labels.append([*(part for part in file.parts[:-1] if part != "data"), *([match[1]] if match else [])])
    while labels and all(labels) and len({label[0] for label in labels}) == 1:
        labels = [label[1:] for label in labels]
    return ["/".join(label) for label in labels]


def split_names(part: Part) -> list[str]:
    """Return the splits of a part, [] if it has one only."""
    if part.kind == "tables":
        names = {split for split, _ in part.files if split}
    else:
        tops = (PurePosixPath(name).parts[0] for name, _ in part.files if "/" in name)
        names = {top for top in tops if top.casefold() in SPLITS}
    return sorted(names)


def _choose_splits(parts: Sequence[Part], chosen: Sequence[str], left_out: LeftOut) -> list[Part]:
    """Return the parts with the files of the chosen splits only; parts without splits stay."""
    available = {name for part in parts for name in split_names(part)}
    for name in chosen:
        if not any(name in label.split("/") or name == label for label in available):
            listed = ", ".join(sorted(available)) or "none"
            remedy = f"the splits are {listed}" if available else "leave --split out"
            raise ConfigError(f"the source has no split {name!r}", where="split", remedy=remedy)
    unchosen = {name for name in available if not set(name.split("/")) & set(chosen) and name not in chosen}
    left_out.add("split", "not chosen with --split", *sorted(unchosen))
    kept = []
    for part in parts:
        files = tuple((name, path) for name, path in part.files if _split_of(part, name) not in unchosen)
        if files or not part.files:
            kept.append(replace(part, files=files))
    return kept


def _split_of(part: Part, name: str) -> str:
    return name if part.kind == "tables" else PurePosixPath(name).parts[0]


def _stem(path: Path) -> str:
    """Return the name of a source without its extensions."""
    name = path.resolve().name
    return (name.partition(".")[0] if path.is_file() else name) or name


def _unique(name: str, used: set[str]) -> str:
    number, unique = 1, name
    while unique.casefold() in used:
        number += 1
        unique = f"{name}-{number}"
    used.add(unique.casefold())
    return unique
