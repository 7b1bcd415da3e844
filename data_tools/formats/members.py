"""Files of folders and archives: those of a dataset, and the reason why each other one is left out."""

from __future__ import annotations

from pathlib import PurePosixPath

from data_tools.listing import CAPTION_SUFFIXES, IMAGE_SUFFIXES, ROW_SUFFIXES, SYSTEM_FOLDERS
from lorakit import manifest
from lorakit.imaging import signatures, video

_ARCHIVES = ".zip .tar .tgz .tbz2 .txz .gz .bz2 .xz .zst .7z .rar .cbz"
ARCHIVE_SUFFIXES = frozenset(_ARCHIVES.split())
TABLE_SUFFIXES = frozenset((".parquet", ".arrow", ".feather"))
_OWN_REPORTS = ("report.html", "report.json")
_OWN_FOLDERS = ".lorakit-"  # of generated masks and controls
_DATASETS_FILES = frozenset(
    ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
)  # of Hugging Face datasets
_CLOUD_SUFFIXES = frozenset((".icloud", ".cloud", ".cloudf"))
_TEXT_SUFFIXES = (*CAPTION_SUFFIXES, *sorted(ROW_SUFFIXES), ".parquet")


def reason_to_leave_out(name: str, head: bytes) -> str | None:
    """Return why a file is not imported, None for images, videos, captions, tables of them and the manifest.

    `head` are its first bytes: an image may have any extension.
    """
    path = PurePosixPath(name)
    if reason := _folder_reason(path):
        return reason
    suffix = path.suffix.lower()
    if path.name in (manifest.MANIFEST_FILE, *manifest.METADATA_FILES):
        return None
    if path.name in _OWN_REPORTS and len(path.parts) == 1:
        return "a report, which `lorakit data report` writes"
    if path.name in _DATASETS_FILES:
        return "a description of the table for Hugging Face datasets"
    if path.name in ("README.md", "LICENSE", ".gitattributes", "LICENSE.txt", "README.txt"):
        return "a description of the dataset"
    if suffix in IMAGE_SUFFIXES or suffix in video.VIDEO_SUFFIXES:
        return None
    if suffix in CAPTION_SUFFIXES or suffix in ROW_SUFFIXES:
        return None
    if signatures.is_image_header(head[:16]):
        return None
    if suffix == ".cls":
        return "a class number, not a caption"
    if suffix in _CLOUD_SUFFIXES:
        return "it is in the cloud only; download it first"
    if suffix in ARCHIVE_SUFFIXES:
        return "an archive within the source; give it as a source of its own"
    if suffix in TABLE_SUFFIXES:
        return "a table within the source; give it as a source of its own"
    return "neither an image nor a caption"


def hidden_folder(name: str) -> str | None:
    """Return the hidden or system folder that a file is in, None for others and for lorakit's own."""
    parts = PurePosixPath(name).parts
    for depth, part in enumerate(parts[:-1], 1):
        if _is_hidden(part):
            return "/".join(parts[:depth])
    return None


def _folder_reason(path: PurePosixPath) -> str | None:
    if hidden_folder(str(path)):
        return "in a hidden folder, or one of the system"
    is_hidden = path.name.startswith(".") and path.suffix.lower() not in _CLOUD_SUFFIXES
    return "a hidden file" if is_hidden else None


def _is_hidden(folder: str) -> bool:
    is_own = folder.startswith(_OWN_FOLDERS)
    return (folder.startswith(".") and not is_own) or folder.casefold() in SYSTEM_FOLDERS


def is_text_file(name: str) -> bool:
    """Return True for captions and metadata."""
    return PurePosixPath(name).suffix.lower() in _TEXT_SUFFIXES


def with_prefix(name: str, prefix: PurePosixPath) -> str:
    """Return the name in a subfolder; generated masks and controls stay in lorakit's own folders."""
    return name if name.startswith(_OWN_FOLDERS) else str(prefix / name)
