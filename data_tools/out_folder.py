"""A folder for everything that lorakit writes about images which stay where they are (`--out`)."""

from __future__ import annotations

import os
from pathlib import Path

from data_tools.listing import OWN_FILES
from lorakit import manifest
from lorakit.core import dataset_paths, output_paths, platform, storage
from lorakit.core.errors import ConfigError, DiskError
from lorakit.manifest import Record

_OWN_NAMES = OWN_FILES | {manifest.METADATA_FILE}


def open_out_folder(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None, *, create: bool = True
) -> Path:
    """Return the dataset folder of the images in `folder`: `out`, which then names them, or `folder` itself.

    A manifest beside the images is the start of the one in a new `out`. With `create` False nothing is
    written: an `out` that does not exist yet gives `folder`. Raises ConfigError for an `out` that overlaps
    with the images, or has files of something else.
    """
    if out is None:
        return Path(folder)
    images, target = dataset_paths.image_folder(folder), Path(out)
    if not images.is_dir():
        raise ConfigError(
            "there is no such folder", where=str(images), remedy="give the folder of your images"
        )
    if target.resolve() == images.resolve():
        return target
    if _is_of_images(target, images):
        return target
    _check_new(target, images)
    if not create:
        return Path(folder)
    storage.make_dir(target)
    _copy_manifest(images, target)  # first: with the link, the folder is complete
    dataset_paths.link_images(target, images)
    return target


def require_writable(folder: Path) -> None:
    """Raise DiskError for a dataset folder that nothing can be written to."""
    if not platform.is_writable_folder(folder):
        raise DiskError(
            "the folder is read-only, and the manifest is stored beside the images",
            where=str(folder),
            remedy=f"write to another folder: run `lorakit data prepare {folder} --out DIR`, and use DIR as "
            "the dataset; the images stay where they are",
        )


def _is_of_images(target: Path, images: Path) -> bool:
    """Return True for a folder of these images, False for one of images that are not there any more.

    Raises ConfigError for a folder of other images.
    """
    linked = dataset_paths.linked_folder(target)
    if linked is None or not linked.is_dir():
        return False
    if linked.samefile(images):
        return True
    raise ConfigError(
        f"this folder belongs to the images in {linked}",
        where=f"out: {target}",
        remedy="choose another --out",
    )


def _check_new(target: Path, images: Path) -> None:
    """Raise ConfigError unless `target` can become the folder of these images."""
    where = f"out: {target}"
    one, two = target.resolve(), images.resolve()
    if one.is_relative_to(two) or two.is_relative_to(one):
        message = "one of --out and the folder of the images is inside the other"
        raise ConfigError(message, where=where, remedy="choose a folder outside of the images")
    output_paths.check_output_path(target, "out")
    if dataset_paths.linked_folder(target) is not None or not target.is_dir():
        return
    foreign = sorted(path.name for path in target.iterdir() if not _is_own(path.name))
    if foreign:
        message = f"the folder has other files: {', '.join(foreign[:3])}"
        raise ConfigError(message, where=where, remedy="choose a new or an empty folder for --out")


def _is_own(name: str) -> bool:
    """Return True for a hidden file, or one that an interrupted first command can have left."""
    return name in _OWN_NAMES or name.startswith(".")


def _copy_manifest(images: Path, target: Path) -> None:
    """Copy a manifest that lies beside the images, with the masks and controls that it names."""
    if not (images / manifest.MANIFEST_FILE).is_file() or (target / manifest.MANIFEST_FILE).exists():
        return
    records = manifest.load_manifest(images)
    for record in records:
        for name in _generated_files(record):
            if (images / name).is_file():
                storage.copy_file(images / name, target / name)
    manifest.save_manifest(target, records)


def _generated_files(record: Record) -> list[str]:
    names = [record.mask or "", *(image.file for image in record.conditioning_images)]
    return [name for name in names if dataset_paths.is_generated(name)]
