"""Every image as training will see it, as files to look through."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.imaging import crops, decode
from lorakit.manifest import Record


def check_preview_folder(root: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Raise `ConfigError` for a place inside the dataset, where the previews would be taken for images."""
    if Path(out).resolve().is_relative_to(Path(root).resolve()):
        remedy = "name a folder beside the dataset"
        raise ConfigError("previews inside the dataset would be trained on", where=str(out), remedy=remedy)


def write_previews(
    root: Path, records: Sequence[Record], out: str | os.PathLike[str], *, quiet: bool = True
) -> list[Path]:
    """One JPEG an image in `out`, cropped and resized to its bucket; `out` lies outside the dataset."""
    check_preview_folder(root, out)
    placed = [record for record in records if record.keep and record.bucket]
    made = []
    for record in track_progress(placed, "previews", len(placed), quiet=quiet):
        picture = decode.crop_and_resize(
            decode.read_record_image(root, record), crops.training_crop(record), record.bucket
        )
        made.append(storage.save_image(Path(out) / f"{record.file}.jpg", picture, quality=92))
    return made
