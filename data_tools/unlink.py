"""Take out of a dataset what lorakit generated: controls, masks, captions of models. The user's stay.

A file is deleted only if the manifest records that lorakit generated it and it is still the recorded one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.captions import generate, tokens
from data_tools.conditioning import attach, controls, masks, segment
from data_tools.conditioning.update import GENERATION_FAILED
from data_tools.findings import pluralize
from data_tools.out_folder import require_writable
from data_tools.scan import replace_notes
from lorakit import manifest
from lorakit.core import checksums, dataset_paths, storage
from lorakit.core.errors import ConfigError
from lorakit.core.visible_text import escape_name
from lorakit.imaging import masks as mask_files
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Caption, ConditioningImage, Record

_MAX_NAMES = 20  # printed; the JSON has all
_CHANGED = "changed since it was generated"
_UNKNOWN = "not in the manifest"


@dataclass(frozen=True)
class UnlinkOptions:
    """The generated parts to take out: controls, masks, captions of models."""

    controls: bool = False
    masks: bool = False
    captions: bool = False

    def check(self) -> None:
        """Raise ConfigError if nothing is named."""
        if not (self.controls or self.masks or self.captions):
            raise ConfigError(
                "nothing to take out is named", where="unlink", remedy="add --controls, --masks or --captions"
            )


@dataclass
class UnlinkResult:
    """Numbers of what is taken out, and its files; `kept` are generated files that stay, and why.

    `done` is False if it is only a plan.
    """

    folder: Path
    records: list[Record] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    done: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON, for scripts."""
        return {
            "folder": str(self.folder), "done": self.done, **self.numbers, "files": self.files,
            "kept": self.kept,
        }  # fmt: skip

    def summary(self) -> str:
        """Return the result for people: all that is deleted is named, or counted after the first ones."""
        parts = [pluralize(number, noun.removesuffix("s")) for noun, number in self.numbers.items()]
        verb = "taken out" if self.done else "to take out"
        lines = [f"{self.folder}: {', '.join(parts)} {verb}"]
        label = "deleted" if self.done else "delete"
        lines += [f"  {label:10} {escape_name(file)}" for file in self.files[:_MAX_NAMES]]
        lines += _rest(self.files)
        names = list(self.kept)
        lines += [f"  {'kept':10} {escape_name(file)}: {self.kept[file]}" for file in names[:_MAX_NAMES]]
        lines += _rest(names)
        if not self.done:
            lines.append("nothing has been changed; give the command again with --yes to do it")
        return "\n".join(lines)


def _rest(names: Sequence[str]) -> list[str]:
    return [f"  ... and {len(names) - _MAX_NAMES} more, see --json"] if len(names) > _MAX_NAMES else []


def unlink_generated(
    folder: str | os.PathLike[str], options: UnlinkOptions, *, apply: bool = False
) -> UnlinkResult:
    """Return what would be taken out of a dataset; with `apply`, do it."""
    options.check()
    root = Path(folder)
    records = manifest.load_manifest(root)
    result = UnlinkResult(root)
    removed: dict[str, str | None] = {}  # generated file: the reason to keep it, if any
    folders: list[str] = []
    if options.controls:
        images = [image for record in records for image in record.conditioning_images if image.is_generated]
        result.numbers["controls"] = len(images)
        removed |= {image.file: _reason_to_keep(root, image) for image in images}
        records = [_without_controls(record) for record in records]
        folders.append(attach.CONTROL_FOLDER)
    if options.masks:
        masked = [record for record in records if _has_generated_mask(record)]
        result.numbers["masks"] = len(masked)
        removed |= {record.mask or "": _reason_to_keep_mask(root, record) for record in masked}
        records = [_without_mask(record) for record in records]
        folders.append(masks.MASK_FOLDER)
    if options.captions:
        result.numbers["captions"] = sum(
            c.source == generate.MODEL_SOURCE for r in records for c in r.captions
        )
        records = [_without_captions(record) for record in records]
    result.records = records
    result.files = sorted(file for file, reason in removed.items() if reason is None)
    result.kept = {file: reason for file, reason in sorted(removed.items()) if reason}
    result.kept |= {name: _UNKNOWN for name in _files_below(root, folders) if name not in removed}
    result.files = [file for file in result.files if (root / file).is_file()]
    if apply:
        _apply(result, folders)
    return result


def _apply(result: UnlinkResult, folders: Sequence[str]) -> None:
    require_writable(result.folder)
    manifest.save_manifest(result.folder, result.records)  # first: no record names a file that is gone
    for file in result.files:
        storage.remove_file(result.folder / file)
    for name in folders:
        folder = result.folder / name
        if folder.is_dir() and not any(folder.iterdir()):
            storage.remove_folder(folder)
    result.done = True


def _files_below(root: Path, folders: Sequence[str]) -> Iterator[str]:
    for name in folders:
        if (root / name).is_dir():
            yield from sorted(f"{name}/{path.name}" for path in (root / name).iterdir())


# ---- controls ----------------------------------------------------------------------------------------------


def _reason_to_keep(root: Path, image: ConditioningImage) -> str | None:
    """Return why the file of a generated control is not deleted, or None."""
    if not dataset_paths.is_generated(image.file):
        return "not in the folder of generated files"
    file = root / image.file
    return _CHANGED if file.is_file() and checksums.sha256_file(file) != image.sha256 else None


def _without_controls(record: Record) -> Record:
    notes = (controls.NOTHING_TO_CONTROL, GENERATION_FAILED)
    return replace_notes(attach.without_generated_controls(record), notes, [])


# ---- masks -------------------------------------------------------------------------------------------------


def _has_generated_mask(record: Record) -> bool:
    is_generated = (record.mask_source or "").startswith((masks.SEGMENTED, masks.GENERATED))
    return is_generated and record.mask is not None


def _reason_to_keep_mask(root: Path, record: Record) -> str | None:
    """Return why the file of a generated mask is not deleted, or None."""
    if not dataset_paths.is_generated(record.mask or ""):
        return "not in the folder of generated files"
    try:
        mask_files.read_record_mask(root, record)
    except ImageError as error:
        return None if error.code == "missing" else _CHANGED
    return None


def _without_mask(record: Record) -> Record:
    plain = masks.without_mask(record) if _has_generated_mask(record) else record
    return replace_notes(plain, (*segment.NOTES, GENERATION_FAILED), [])


# ---- captions ----------------------------------------------------------------------------------------------


def _model_captions(record: Record) -> list[Caption]:
    return [caption for caption in record.captions if caption.source == generate.MODEL_SOURCE]


def _without_captions(record: Record) -> Record:
    """Return the record without the captions and tags of models; those in files are read again by prepare."""
    removed = _model_captions(record)
    if not removed:
        return replace_notes(record, generate.NOTES, [])
    words = {
        part.strip() for caption in removed for part in (caption.original_text or caption.text).split(",")
    }
    kept = tuple(caption for caption in record.captions if caption not in removed)
    tags = () if set(record.tags) <= words else record.tags
    return replace_notes(replace(record, captions=kept, tags=tags), (*generate.NOTES, *tokens.NOTES), [])
