"""The folder of a dataset's images, where it is not the folder of its manifest.

Images in a folder that cannot be written to (a share, a disk of somebody else) have their manifest, report,
masks and controls in another folder, with a file `lorakit-images.json` that names the folder of the images.
Every path of a manifest is resolved here.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from lorakit.core import folders, storage
from lorakit.core.errors import DataError

IMAGES_FILE = "lorakit-images.json"
_KEY = "images"
_GENERATED = ".lorakit-"  # first part of the path of a file that lorakit generated, such as a mask
# No path, an absolute one, a drive, an address, a parent folder, a zero byte.
_OUTSIDE = re.compile(
    r"\A(?:\Z|[/\\]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]*://)|(?:\A|[/\\])\.\.(?:[/\\]|\Z)|\0"
)


def image_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder that the images of a dataset are in: `folder` itself, or the one that it names.

    Raises DataError if there is no folder at that path any more.
    """
    own = Path(folder)
    images = linked_folder(own)
    if images is None:
        return own
    if not images.is_dir():
        raise DataError(
            "the folder of the images is not there",
            where=f"{own / IMAGES_FILE}: {images}",
            remedy=f"connect its disk, or run `lorakit data prepare DIR --out {own}` with its new path DIR",
        )
    return images


def linked_folder(folder: Path) -> Path | None:
    """Return the folder of images that a dataset folder names, if there is one at that path or not."""
    file = folder / IMAGES_FILE
    try:
        status = file.stat()
    except OSError:
        return None
    return _read_link(str(file.absolute()), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)  # it is asked for with every image; time and size notice a changed file
def _read_link(file: str, modified: int, size: int) -> Path:
    value = storage.read_json(file)
    name = value.get(_KEY) if isinstance(value, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        remedy = 'write {"images": "../photos"}: the folder of the images, relative to this file or absolute'
        raise DataError(f"the file must have the text {_KEY!r}", where=file, remedy=remedy)
    return Path(os.path.normpath(Path(file).parent.resolve() / name))


def file_path(folder: str | os.PathLike[str], file: str) -> Path:
    """Return the path of a file that a record of the dataset's manifest names.

    Generated masks and controls are in `folder`, everything else is in the folder of the images.
    """
    return (Path(folder) if is_generated(file) else image_folder(folder)) / file


def is_generated(file: str) -> bool:
    """Return True for the path of a mask or control that lorakit generated."""
    return file.startswith(_GENERATED)


def link_images(folder: str | os.PathLike[str], images: str | os.PathLike[str]) -> None:
    """Write the file that names the folder of the images, relative if both are on one drive."""
    path = folders.relative_path(Path(images).resolve(), Path(folder).resolve())
    storage.write_json(Path(folder) / IMAGES_FILE, {_KEY: path})


def check_dataset_path(path: str, where: str) -> None:
    """Raise DataError for a path that leaves the dataset folder (absolute, `..`, drive, share, URL)."""
    if _OUTSIDE.search(path):
        raise DataError(
            f"{path!r} is not the path of a file in the dataset folder",
            where=where,
            remedy="use a path relative to the dataset folder",
        )
