"""Folders that other trainers read: their file types, captions, masks and conditioning images.

From the code of sd-scripts, OneTrainer (mgds) and ai-toolkit in 2026. All get folders `<repeats>_<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from data_tools.captions.metadata import parse_kohya_folder
from data_tools.conditioning.attach import CONTROL_LABEL
from data_tools.conditioning.masks import SIDECAR_SUFFIX
from data_tools.formats import RenamedRecord, for_export
from data_tools.formats.left_out import LeftOut
from lorakit.core import dataset_paths
from lorakit.imaging import signatures
from lorakit.manifest import ConditioningImage, Record

_COMMON = frozenset((".jpg", ".jpeg", ".png", ".webp"))
_VIDEOS = frozenset((".mp4", ".mov", ".mkv", ".webm", ".m4v"))
_WRITABLE = frozenset((*_COMMON, ".bmp"))  # extensions of images that are written anew
_COLORS = ("icc_converted", "color_encoding_converted", "hdr_tone_mapped")
_OTHERS = {"transparency": "transparency", "first_frame": "frames", "primary_image": "several images"}
CONVERSION_NOTES = frozenset(("exif_rotated", *_COLORS, *_OTHERS))  # codes of notes that a conversion settles
MASKS, CONTROLS, SOURCES = "masks", "controls", "sources"  # folders beside those of the images


@dataclass(frozen=True)
class Trainer:
    """A trainer, and what it reads from a folder.

    `caption_lines`: each line of a `.txt` is a caption of its own; else it reads only one. `mask_suffix` and
    `control_suffix` are parts of the names of files beside an image; without them, masks and controls are in
    folders of their own. `all_or_none`: every image of a folder needs a mask or control, or none.
    """

    name: str
    suffixes: frozenset[str]
    caption_lines: bool
    rotates: bool = True  # by EXIF
    mask_suffix: str | None = None
    control_suffix: str | None = None
    all_or_none: bool = False
    reads_sources: bool = False


TRAINERS = {
    "kohya": Trainer("sd-scripts", _COMMON | {".bmp"}, True, rotates=False, all_or_none=True),
    "onetrainer": Trainer(
        "OneTrainer",
        _COMMON | _VIDEOS | {".bmp", ".tif", ".tiff", ".avif"},
        True,
        mask_suffix=SIDECAR_SUFFIX,
        control_suffix=CONTROL_LABEL,
    ),
    "ai-toolkit": Trainer("ai-toolkit", _COMMON | _VIDEOS, False, reads_sources=True),
}


def trainer_layout(
    folder: Path, records: Sequence[Record], trainer: Trainer, name: str, left_out: LeftOut
) -> list[RenamedRecord]:
    """Return the records as `<repeats>_<name>/a.jpg`; such a folder keeps its name.

    Videos and conditioning images that the trainer does not read are added to `left_out`.
    """
    renamed: list[RenamedRecord] = []
    used: set[str] = set()
    for record in records:
        target = _unique_target(record, name, _suffix(folder, record, trainer), used)
        if record.video is not None and PurePosixPath(target).suffix not in trainer.suffixes:
            left_out.add("video", f"{trainer.name} reads no such videos", record.file)
            continue
        mask = None if record.mask is None else _beside(target, trainer.mask_suffix, MASKS)
        renamed.append(RenamedRecord(record, replace(for_export(record), file=target, mask=mask)))
    reasons = _folder_reasons(renamed, trainer) if trainer.all_or_none else {}
    return [_with_conditioning(pair, trainer, reasons, left_out) for pair in renamed]


def _folder_reasons(renamed: Sequence[RenamedRecord], trainer: Trainer) -> dict[PurePosixPath, str]:
    """Return why the controls of a folder cannot be used, for folders where they cannot."""
    reasons: dict[PurePosixPath, str] = {}
    for old, new in renamed:
        folder = PurePosixPath(new.file).parent
        if old.mask:
            reasons[folder] = f"{trainer.name} reads either masks or controls, and there are masks"
        elif not any(image.type == "control" for image in old.conditioning_images):
            reasons.setdefault(folder, f"{trainer.name} needs a control of every image of a folder")
    return reasons


def _unique_target(record: Record, name: str, suffix: str, used: set[str]) -> str:
    path = PurePosixPath(record.file)
    is_kohya_folder = parse_kohya_folder(path.parent.name) is not None
    flat = path.name if is_kohya_folder or len(path.parts) == 1 else "_".join(path.parts)
    folder = path.parent.name if is_kohya_folder else f"{record.repeats}_{name}"
    first = stem = f"{folder}/{PurePosixPath(flat).stem}"
    number = 1
    while stem.casefold() in used:
        number += 1
        stem = f"{first}_{number}"
    used.add(stem.casefold())
    return f"{stem}{suffix}"


def _suffix(folder: Path, record: Record, trainer: Trainer) -> str:
    """Return the extension in the export: that of the content, or of the PNG that the image becomes."""
    suffix = PurePosixPath(record.file).suffix
    if record.video is not None:
        return suffix
    if suffix.lower() not in trainer.suffixes:
        with open(dataset_paths.file_path(folder, record.file), "rb") as file:
            suffix = signatures.image_suffix(file.read(16))
    is_written = conversion_reason(record, trainer) is not None
    return suffix if suffix.lower() in (_WRITABLE if is_written else trainer.suffixes) else ".png"


def conversion_reason(record: Record, trainer: Trainer) -> str | None:
    """Return why the trainer would read the pixels wrongly, or None; file types are not considered."""
    codes = {note.partition(":")[0] for note in record.notes}
    if record.video is not None:
        return None
    if "exif_rotated" in codes and not trainer.rotates:
        return "a rotation by EXIF"
    if not codes.isdisjoint(_COLORS):
        return "colors other than sRGB"
    return next((reason for code, reason in _OTHERS.items() if code in codes), None)


def _beside(target: str, suffix: str | None, folder: str, extension: str = ".png") -> str:
    """Return the name of an image's mask or control: beside it, or in a folder of its own."""
    stem = PurePosixPath(target).with_suffix("")
    return f"{stem}{suffix}{extension}" if suffix else f"{folder}/{stem}{extension}"


def _with_conditioning(
    pair: RenamedRecord, trainer: Trainer, reasons: Mapping[PurePosixPath, str], left_out: LeftOut
) -> RenamedRecord:
    """Return the record with the conditioning images that the trainer reads, under their new names."""
    kept: list[ConditioningImage] = []
    counts = {"source": 0, "control": 0}
    for image in pair.old.conditioning_images:
        counts[image.type] += 1
        reason = _unread_reason(image, counts[image.type], trainer)
        reason = reason or reasons.get(PurePosixPath(pair.new.file).parent)
        if reason:
            left_out.add(f"{image.type} image", reason, image.file)
            continue
        number = f"_{counts[image.type]}" if counts[image.type] > 1 else ""
        folder = f"{CONTROLS if image.type == 'control' else SOURCES}{number}"
        kept.append(replace(image, file=_beside(pair.new.file, trainer.control_suffix, folder)))
    return RenamedRecord(pair.old, replace(pair.new, conditioning_images=tuple(kept)))


def _unread_reason(image: ConditioningImage, number: int, trainer: Trainer) -> str | None:
    if image.type == "source":
        return None if trainer.reads_sources else f"{trainer.name} reads no images before an edit"
    is_too_many = number > 1 and not trainer.reads_sources
    return f"{trainer.name} reads one control of an image" if is_too_many else None
