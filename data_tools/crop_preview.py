"""Previews: every image cropped and resized as training uses it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lorakit.core import dataset_paths, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.imaging import crops, decode
from lorakit.manifest import Record


def check_preview_folder(root: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Raise `ConfigError` for a folder inside the dataset, where the previews would count as images."""
    if Path(out).resolve().is_relative_to(dataset_paths.image_folder(root).resolve()):
        remedy = "name a folder outside the dataset"
        raise ConfigError("previews inside the dataset would be trained on", where=str(out), remedy=remedy)


def write_previews(
    root: Path, records: Sequence[Record], out: str | os.PathLike[str], *, quiet: bool = True
) -> list[Path]:
    """Write one JPEG for each image to `out`, a folder outside the dataset; return their paths."""
    check_preview_folder(root, out)
    bucketed = [record for record in records if record.keep and record.bucket]
    paths = []
    for record in track_progress(bucketed, "previews", len(bucketed), quiet=quiet):
        image = decode.crop_and_resize(
            decode.read_record_image(root, record), crops.training_crop(record), record.bucket
        )
        paths.append(storage.save_image(Path(out) / f"{record.file}.jpg", image, quality=92))
    return paths
