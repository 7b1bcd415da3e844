"""Find the files of a dataset folder without opening any of them further than its first bytes.

Links are never followed out of the folder, linked folders are never walked, special files are never opened.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorakit import manifest
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import signatures, video

_IMAGES = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .jxl .jp2 .j2k .ppm"
    " .pgm .pbm .pnm .qoi .svg .tga .psd .ico .dng .cr2 .cr3 .nef .arw .raf .orf .rw2"
)
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
CAPTION_SUFFIXES = (".txt", ".caption", ".json")
OWN_FILES = frozenset({manifest.MANIFEST_FILE, "report.html", "report.json"})
_NEVER_IMAGES = frozenset({".txt", ".csv", ".json", ".jsonl", ".html", ".md", ".py", ".yaml", ".yml"})
_KOHYA_JSON = re.compile(r"meta_\w+\.json")
_SKIPPED_FOLDERS = frozenset({"__MACOSX"})


@dataclass(frozen=True)
class Listing:
    """The files of a dataset folder as relative POSIX paths, sorted."""

    root: Path
    images: tuple[str, ...]
    sidecars: frozenset[str]
    metadata: tuple[str, ...]
    others: tuple[str, ...]
    hidden_images: tuple[str, ...]
    linked_folders: tuple[str, ...]
    # As ASCII: names that are not UTF-8, or that lead out of the folder on some system.
    unusable_names: tuple[str, ...] = ()
    unreadable_folders: tuple[str, ...] = ()
    kohya: tuple[str, ...] = ()  # JSON in which kohya's scripts collect captions, such as meta_cap.json

    @functools.cached_property
    def image_set(self) -> frozenset[str]:
        """The images, for membership."""
        return frozenset(self.images)

    @functools.cached_property
    def normal(self) -> dict[str, str]:
        """Images and caption files by their normalised (NFC) name."""
        return {self.normalise(name): name for name in (*self.images, *sorted(self.sidecars))}

    @staticmethod
    def normalise(name: str) -> str:
        """One spelling for names that differ only in how accents are encoded."""
        return unicodedata.normalize("NFC", name)


@dataclass
class _FileGroups:
    films: bool = False
    images: list[str] = field(default_factory=list)
    sidecars: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    kohya: list[str] = field(default_factory=list)


def list_dataset(folder: str | os.PathLike[str], *, films: bool = False) -> Listing:
    """List a dataset folder; a missing folder or one without images is an error.

    With `films`, or where the manifest has clips already, clips are listed among the images.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise ConfigError(
            f"the dataset folder {what}", where=str(root), remedy="give the folder of your images"
        )
    found = _FileGroups(films=films or _has_clips(root))
    for name, entry in _walk(root, found):
        _classify(name, entry, found)
    if found.films and any(video.is_video(name) for name in found.images):
        video.import_av()  # says now what is missing, not file by file
    if not found.images:
        rest = sorted(found.others) + sorted(found.unusable)
        some = f"; it holds {', '.join(rest[:3])}" if rest else ""
        message = f"the folder has no images{some}"
        raise DataError(message, where=str(root), remedy="put .jpg, .png or .webp files into it")
    return Listing(
        root,
        tuple(sorted(found.images)),
        frozenset(found.sidecars),
        tuple(sorted(found.metadata)),
        tuple(sorted(found.others)),
        tuple(sorted(found.hidden)),
        tuple(sorted(found.links)),
        tuple(sorted(found.unusable)),
        tuple(sorted(found.unreadable)),
        tuple(sorted(found.kohya)),
    )


def _has_clips(root: Path) -> bool:
    """Whether an earlier manifest lists clips; in captions, the same words would have other quotes."""
    file = root / manifest.MANIFEST_FILE
    return file.is_file() and b', "clip": {' in file.read_bytes()


def _walk(root: Path, found: _FileGroups) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All entries below `root` that are not folders, with their relative names; linked folders are noted."""
    pending = [""]
    while pending:
        base = pending.pop()
        try:
            entries = sorted(os.scandir(root / base), key=lambda entry: entry.name)
        except OSError as error:
            if base:
                found.unreadable.append(base)
                continue
            message = f"cannot list the folder: {error.strerror}"
            raise DataError(message, where=str(root), remedy="make it readable") from error
        for entry in entries:
            name = f"{base}{entry.name}"
            if not _is_portable_name(name):
                found.unusable.append(ascii(name)[1:-1])
            elif entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and entry.name not in _SKIPPED_FOLDERS:
                    pending.append(f"{name}/")
            elif _links_to_folder(entry):
                found.links.append(name)
            elif not (base == "" and entry.name in OWN_FILES):
                yield name, entry


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself: a file like others, of which the scan says so
        return False


def _classify(name: str, entry: os.DirEntry[str], found: _FileGroups) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        if suffix in IMAGE_SUFFIXES:
            found.hidden.append(name)
    elif entry.name in manifest.METADATA_FILES:
        found.metadata.append(name)
    elif _KOHYA_JSON.fullmatch(entry.name):
        found.kohya.append(name)
    elif suffix in CAPTION_SUFFIXES:
        found.sidecars.append(name)
    elif (
        (found.films and suffix in video.VIDEO_SUFFIXES)
        or suffix in IMAGE_SUFFIXES
        or (suffix not in _NEVER_IMAGES and _starts_like_an_image(entry))
    ):
        found.images.append(name)
    else:
        found.others.append(name)


def _starts_like_an_image(entry: os.DirEntry[str]) -> bool:
    """Look into a regular file of unknown ending: a picture without an ending must not go missing."""
    try:
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            return False
        with open(entry.path, "rb") as file:
            return signatures.is_image_header(file.read(16))
    except OSError:
        return False


def _is_portable_name(name: str) -> bool:
    """Whether a manifest can hold the name and every system takes it for the same file."""
    try:
        name.encode("utf-8")
        manifest.check_dataset_path(name, "")
    except (UnicodeEncodeError, DataError):
        return False
    return True
