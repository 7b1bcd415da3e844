"""List the files of a dataset folder, reading at most the first bytes of any of them.

Links out of the folder and linked folders are not followed, and special files are not opened.
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

from data_tools.captions.table_captions import Tables
from data_tools.earlier import EarlierDataset
from lorakit import manifest
from lorakit.core import dataset_paths
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import signatures, video

_IMAGES = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .jxl .jp2 .j2k .ppm"
    " .pgm .pbm .pnm .qoi .svg .tga .psd .ico .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .hif .avifs .heics .mpo"
    " .jpf .jpx .j2c .pfm .pam"
    # Of kinds that are not read, so that they are named as such.
    " .psb .xcf .kra .ora .clip .psp .cur .icns .dds .ktx .ktx2 .pcx .sgi .exr .hdr .dpx .fits .eps .jxr .wdp"
    " .jls .bpg .flif .djvu .xpm .wmf .emf .blp .crw .nrw .srw .sr2 .srf .pef .x3f .3fr .iiq .mrw .rwl .erf"
)
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
CAPTION_SUFFIXES = (".txt", ".caption", ".json")
ROW_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})  # of tables of text
OWN_FILES = frozenset({manifest.MANIFEST_FILE, dataset_paths.IMAGES_FILE, "report.html", "report.json"})
_NEVER_IMAGES = frozenset({".txt", ".csv", ".json", ".jsonl", ".html", ".md", ".py", ".yaml", ".yml"})
_KOHYA_JSON = re.compile(r"meta_\w+\.json")
# Folders of systems and of other programs, with copies, thumbnails or deleted files. Compared in lower case.
SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "thumbnails",
        "lightroom previews.lrdata",
        "previews.lrdata",
        "picasaoriginals",
        "found.000",
    }
)
_CLOUD_SUFFIXES = frozenset({".icloud", ".cloud", ".cloudf"})  # placeholders of files that are not here


@dataclass(frozen=True)
class Listing:
    """The files of a folder of images, `root`, as relative POSIX paths, sorted.

    The manifest, the report and generated files are in `folder`: the same one, or another for read-only
    images.
    """

    root: Path
    folder: Path
    earlier: EarlierDataset
    images: tuple[str, ...]
    sidecars: frozenset[str]
    metadata: tuple[str, ...]
    other_files: tuple[str, ...]
    hidden_files: tuple[str, ...]
    linked_folders: tuple[str, ...]
    # Escaped as ASCII: names that are not UTF-8, or that lead out of the folder on some system.
    unusable_names: tuple[str, ...] = ()
    unreadable_folders: tuple[str, ...] = ()
    kohya_metadata: tuple[str, ...] = ()  # JSON files with captions of kohya's scripts, such as meta_cap.json
    system_folders: tuple[str, ...] = ()
    hidden_folders: tuple[str, ...] = ()
    cloud_placeholders: tuple[str, ...] = ()
    tables: Tables = field(default_factory=Tables)  # read by captions/metadata.py

    def user_metadata_files(self) -> list[Path]:
        """Return the user's own metadata files beside the images, without one that lorakit wrote."""
        folders = manifest.folders_of(self.images)
        wrote_metadata = self.earlier.wrote_metadata if self.root == self.folder else None
        return manifest.user_metadata_files(self.root, folders, wrote_metadata=wrote_metadata)

    @functools.cached_property
    def image_set(self) -> frozenset[str]:
        """The images as a set."""
        return frozenset(self.images)

    @functools.cached_property
    def images_by_normalized_name(self) -> dict[str, str]:
        """Images by their normalized name, without names that several images would have."""
        names: dict[str, list[str]] = {}
        for image in self.images:
            names.setdefault(self.normalize_name(image), []).append(image)
        return {name: images[0] for name, images in names.items() if len(images) == 1}

    @functools.cached_property
    def images_by_stem(self) -> dict[str, str]:
        """Images by their name without extension, without names that several images would have."""
        names: dict[str, list[str]] = {}
        for image in self.images:
            names.setdefault(os.path.splitext(image)[0], []).append(image)
        return {name: images[0] for name, images in names.items() if len(images) == 1}

    @functools.cached_property
    def text_candidates(self) -> frozenset[str]:
        """Files that are not images: caption files and all others."""
        return self.sidecars | frozenset(self.other_files)

    @functools.cached_property
    def unclaimed_sidecars(self) -> dict[str, list[str]]:
        """Caption files by their normalized name, without those that have the very name of an image."""
        owners = self.image_set | {os.path.splitext(image)[0] for image in self.images}
        unclaimed: dict[str, list[str]] = {}
        for name in sorted(self.sidecars):
            stem, suffix = os.path.splitext(name)
            if stem not in owners or suffix not in CAPTION_SUFFIXES:
                unclaimed.setdefault(self.normalize_name(name), []).append(name)
        return unclaimed

    @staticmethod
    def normalize_name(name: str) -> str:
        """Return one spelling for names that differ only in case or in how accents are encoded (NFC)."""
        if name.isascii():
            return name.lower()
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def file_stem(name: str) -> str:
    """Return a file's name without its extension, as `PurePosixPath.with_suffix("")` and ten times faster."""
    stem, _, suffix = name.rpartition(".")
    return name if not suffix or not stem or "/" in suffix or stem.endswith("/") else stem


@dataclass
class _FileGroups:
    include_videos: bool = False
    images: list[str] = field(default_factory=list)
    sidecars: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    kohya_metadata: list[str] = field(default_factory=list)
    system_folders: list[str] = field(default_factory=list)
    hidden_folders: list[str] = field(default_factory=list)
    cloud_placeholders: list[str] = field(default_factory=list)


def list_dataset(folder: str | os.PathLike[str], *, include_videos: bool = False) -> Listing:
    """List a dataset folder; a missing folder is a `ConfigError`, one without images a `DataError`.

    With `include_videos`, or if the manifest has videos already, videos are listed among the images.
    """
    root = dataset_paths.image_folder(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise ConfigError(
            f"the dataset folder {what}", where=str(root), remedy="give the folder of your images"
        )
    earlier = EarlierDataset(Path(folder))
    groups = _FileGroups(include_videos=include_videos or _has_videos(Path(folder)))
    for name, entry in _walk(root, groups):
        _classify(name, entry, groups)
    if groups.include_videos and any(video.is_video(name) for name in groups.images):
        video.import_av()  # report a missing library once, not for each file
    if not groups.images:
        raise _no_images(root, groups)
    return Listing(
        root,
        Path(folder),
        earlier,
        tuple(sorted(groups.images)),
        frozenset(groups.sidecars),
        tuple(sorted(groups.metadata)),
        tuple(sorted(groups.other_files)),
        tuple(sorted(groups.hidden)),
        tuple(sorted(groups.links)),
        tuple(sorted(groups.unusable)),
        tuple(sorted(groups.unreadable)),
        tuple(sorted(groups.kohya_metadata)),
        tuple(sorted(groups.system_folders)),
        tuple(sorted(groups.hidden_folders)),
        tuple(sorted(groups.cloud_placeholders)),
    )


def _no_images(root: Path, groups: _FileGroups) -> DataError:
    """Return the error of a folder without images, which names what there is."""
    videos = [name for name in sorted(groups.other_files) if video.is_video(name)]
    if videos:
        number = "1 video" if len(videos) == 1 else f"{len(videos)} videos"
        message = f"the folder has no images, but {number}: {', '.join(videos[:3])}"
        remedy = "add --videos to use them, for a base model that generates videos"
        return DataError(message, where=str(root), remedy=remedy)
    rest = sorted(groups.other_files) + sorted(groups.unusable)
    examples = f"; it holds {', '.join(rest[:3])}" if rest else ""
    message = f"the folder has no images{examples}"
    return DataError(message, where=str(root), remedy="put .jpg, .png or .webp files into it")


def _has_videos(folder: Path) -> bool:
    """Return True if the earlier manifest lists videos. (In a caption, the quotes would be escaped.)"""
    file = folder / manifest.MANIFEST_FILE
    return file.is_file() and b', "video": {' in file.read_bytes()


def _walk(root: Path, groups: _FileGroups) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all entries below `root` that are not folders, with their relative names."""
    pending = [""]
    while pending:
        base = pending.pop()
        try:
            entries = sorted(os.scandir(root / base), key=lambda entry: entry.name)
        except OSError as error:
            if base:
                groups.unreadable.append(base)
                continue
            message = f"cannot list the folder: {error.strerror}"
            raise DataError(message, where=str(root), remedy="make it readable") from error
        for entry in entries:
            name = f"{base}{entry.name}"
            if not _is_portable_name(name):
                groups.unusable.append(ascii(name)[1:-1])
            elif entry.is_dir(follow_symlinks=False):
                if entry.name.casefold() in SYSTEM_FOLDERS:
                    groups.system_folders.append(name)
                elif not entry.name.startswith("."):
                    pending.append(f"{name}/")
                elif _is_foreign(entry.name):
                    groups.hidden_folders.append(name)
            elif _links_to_folder(entry):
                groups.links.append(name)
            elif not (base == "" and entry.name in OWN_FILES):
                yield name, entry


def _is_foreign(folder: str) -> bool:
    """Return True for a hidden folder that is not one of lorakit's or of version control."""
    return not folder.startswith(".lorakit") and folder not in (".git", ".cache", ".huggingface")


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself: listed, and excluded by the scan
        return False


def _classify(name: str, entry: os.DirEntry[str], groups: _FileGroups) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in _CLOUD_SUFFIXES:
        groups.cloud_placeholders.append(name)
    elif entry.name.startswith("."):
        is_text = suffix in CAPTION_SUFFIXES and not entry.name.startswith(("._", ".lorakit"))
        if suffix in IMAGE_SUFFIXES or is_text:
            groups.hidden.append(name)
    elif entry.name in manifest.METADATA_FILES:
        groups.metadata.append(name)
    elif _KOHYA_JSON.fullmatch(entry.name):
        groups.kohya_metadata.append(name)
    elif suffix in CAPTION_SUFFIXES:
        groups.sidecars.append(name)
    elif (
        (groups.include_videos and suffix in video.VIDEO_SUFFIXES)
        or suffix in IMAGE_SUFFIXES
        or (suffix not in _NEVER_IMAGES and _starts_like_an_image(entry))
    ):
        groups.images.append(name)
    else:
        groups.other_files.append(name)


def _starts_like_an_image(entry: os.DirEntry[str]) -> bool:
    """Return True if a regular file of unknown extension has the header of an image."""
    try:
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            return False
        with open(entry.path, "rb") as file:
            return signatures.is_image_header(file.read(16))
    except OSError:
        return False


def _is_portable_name(name: str) -> bool:
    """Return True if the manifest can store the name and it is the same file on every system."""
    try:
        name.encode("utf-8")
        manifest.check_dataset_path(name, "")
    except (UnicodeEncodeError, DataError):
        return False
    return True
