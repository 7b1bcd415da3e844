"""Folders to import from: plain ones, and snapshots of the Hugging Face hub, which are made of links.

A link counts as the file that it leads to, if that is in the folder or in the cache of the snapshot. Any
other link is followed only on request: a downloaded folder could link to private files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data_tools.formats.left_out import LeftOut
from data_tools.formats.members import hidden_folder
from lorakit import manifest
from lorakit.core.errors import ConfigError
from lorakit.core.folders import walk_files
from lorakit.imaging import decode

_REPOSITORY = re.compile(r"(?:models|datasets|spaces)--")
OUTSIDE = "a link out of the folder; --follow-links imports its target"


class SourceFolder:
    """The files of a folder, with links followed inside it and inside its cache, or everywhere on request."""

    def __init__(self, folder: Path, *, follow_links: bool = False) -> None:
        self.root, self.follow_links = find_snapshot(folder), follow_links
        self.allowed = [self.root.resolve(), *_blob_folders(self.root)]
        self.read_by_tables: set[Path] = set()

    def files(self, left_out: LeftOut) -> Iterator[tuple[str, Path]]:
        """Yield (relative name, path) of the files; links that are not followed are added to `left_out`."""
        for path in walk_files(self.root):
            name = path.relative_to(self.root).as_posix()
            if folder := hidden_folder(name):
                left_out.add("folder", "a hidden folder, or one of the system", folder)
                continue
            reason = self._link_reason(path) if path.is_symlink() else None
            if reason is None and not path.is_file():
                reason = "a pipe, socket or device"
            if reason is None:
                manifest.check_dataset_path(name, str(path))
                yield name, path
            else:
                left_out.add("file", reason, name)

    def _link_reason(self, path: Path) -> str | None:
        """Return why a link is not followed, or None."""
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return "a link that leads nowhere"
        if target.is_dir():
            return "a link to a folder; give that folder as a source of its own"
        return None if self.follow_links or self._is_allowed(target) else OUTSIDE

    def _is_allowed(self, target: Path) -> bool:
        return any(target.is_relative_to(folder) for folder in self.allowed)

    def find(self, name: str, beside: Path | None = None) -> Path | None:
        """Return the file at a path that a table names, relative to the table or to the folder, or None."""
        for folder in dict.fromkeys((beside or self.root, self.root)):
            try:
                target = (folder / name).resolve(strict=True)
            except (OSError, RuntimeError, ValueError):
                continue
            if target.is_file() and (self._is_allowed(target) or self.follow_links):
                return folder / name
        return None

    def read(self, name: str, beside: Path | None = None) -> bytes | None:
        """Return the bytes of such a file, or None."""
        path = self.find(name, beside)
        if path is None:
            return None
        self.read_by_tables.add(path.resolve())
        return decode.read_file(path)


def find_snapshot(folder: Path) -> Path:
    """Return the newest snapshot of a repository in the hub's cache; any other folder unchanged."""
    if (folder / "snapshots").is_dir() and ((folder / "refs").is_dir() or (folder / "blobs").is_dir()):
        snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
        main = folder / "refs" / "main"
        name = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        chosen = [path for path in snapshots if path.name == name] or snapshots
        if len(chosen) == 1:
            return chosen[0]
        problem = "several snapshots" if chosen else "no snapshot"
        remedy = f"give one of {', '.join(map(str, chosen))}" if chosen else "download the dataset again"
        raise ConfigError(f"the hub's cache has {problem} of this dataset", where=str(folder), remedy=remedy)
    repositories = sorted(path.name for path in folder.glob("*--*") if _REPOSITORY.match(path.name))
    if repositories and all((folder / name / "snapshots").is_dir() for name in repositories):
        remedy = f"give the folder of one: {', '.join(repositories[:5])}"
        raise ConfigError("a cache of several repositories", where=str(folder), remedy=remedy)
    return folder


def _blob_folders(folder: Path) -> list[Path]:
    """Return the folder of the hub's cache that the links of a snapshot lead to, if it is one."""
    parents = [folder.absolute(), *folder.absolute().parents]
    return [
        (parent / "blobs").resolve()
        for parent in parents
        if _REPOSITORY.match(parent.name) and (parent / "blobs").is_dir()
    ]
