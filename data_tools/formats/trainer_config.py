"""Configurations that name the folders of an export: sd-scripts' dataset.toml, ai-toolkit's datasets."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data_tools.captions.metadata import parse_kohya_folder
from data_tools.formats import DatasetFile
from data_tools.formats.trainers import CONTROLS, MASKS, Trainer
from lorakit.manifest import Record

_MOVED = "# Correct the folders if this one is moved.\n"


def config_file(out: Path, records: Sequence[Record], trainer: Trainer) -> DatasetFile | None:
    """Return the configuration for the exported `records` in `out`; None for a trainer without one."""
    if trainer.name == "sd-scripts":
        return DatasetFile("dataset.toml", _sd_scripts_toml(out, records).encode("utf-8"))
    if trainer.name == "ai-toolkit":
        return DatasetFile("datasets.yaml", _ai_toolkit_yaml(out, records).encode("utf-8"))
    return None


def usage_notes(out: Path, records: Sequence[Record], trainer: Trainer) -> list[str]:
    """Return how the trainer is started with the export."""
    has_masks = any(record.mask for record in records)
    if trainer.name == "sd-scripts":
        masked = " --masked_loss" if has_masks else ""
        return [f"sd-scripts reads it with --dataset_config {out / 'dataset.toml'}{masked}"]
    if trainer.name == "ai-toolkit":
        return [f"ai-toolkit reads it with the `datasets` of {out / 'datasets.yaml'}"]
    folders = ", ".join(_by_folder(records))
    masked = "; masks need Masked Training" if has_masks else ""
    return [
        f"OneTrainer: add a concept for each of {folders} with its number of repeats as Balancing, and the"
        f" prompts from a text file of each image{masked}"
    ]


def _by_folder(records: Sequence[Record]) -> dict[str, list[Record]]:
    folders: dict[str, list[Record]] = {}
    for record in records:
        folders.setdefault(PurePosixPath(record.file).parts[0], []).append(record)
    return folders


def _sd_scripts_toml(out: Path, records: Sequence[Record]) -> str:
    has_variants = any(len(record.captions) > 1 for record in records)
    lines = [_MOVED + "[general]", 'caption_extension = ".txt"', "enable_bucket = true"]
    # A random line of a caption file each time, else the first one.
    lines += ["enable_wildcard = true"] if has_variants else []
    sides = Counter(round(math.sqrt(r.bucket[0] * r.bucket[1]) / 64) * 64 for r in records if r.bucket)
    for name, own in _by_folder(records).items():
        repeats, words = parse_kohya_folder(name) or (1, name)
        conditioning = _conditioning_folder(own)
        lines += ["", "[[datasets]]"]
        lines += [f"resolution = {max(64, sides.most_common(1)[0][0])}"] if sides else []
        lines += ["", "  [[datasets.subsets]]", f"  image_dir = {_quoted(out / name)}"]
        lines += [f"  num_repeats = {repeats}"]
        if conditioning:
            lines.append(f"  conditioning_data_dir = {_quoted(out / conditioning / name)}")
        else:
            lines.append(f"  class_tokens = {_quoted(words)}")
    return "\n".join(lines) + "\n"


def _conditioning_folder(records: Sequence[Record]) -> str | None:
    if any(record.mask for record in records):
        return MASKS
    return CONTROLS if any(record.conditioning_images for record in records) else None


def _ai_toolkit_yaml(out: Path, records: Sequence[Record]) -> str:
    datasets = []
    for name, own in _by_folder(records).items():
        entry: dict[str, Any] = {"folder_path": str((out / name).absolute()), "caption_ext": "txt"}
        entry["num_repeats"] = (parse_kohya_folder(name) or (1, name))[0]
        if any(record.mask for record in own):
            entry["mask_path"] = str((out / MASKS / name).absolute())
        files = [image.file for record in own for image in record.conditioning_images]
        tops = sorted({PurePosixPath(file).parts[0] for file in files}, reverse=False)
        if tops:
            entry["control_path"] = [str((out / top / name).absolute()) for top in tops]
        datasets.append(entry)
    return _MOVED + str(yaml.safe_dump({"datasets": datasets}, sort_keys=False, allow_unicode=True))


def _quoted(value: Path | str) -> str:
    """Return a string of TOML, whose escapes are those of JSON."""
    text = str(value.absolute()) if isinstance(value, Path) else value
    return json.dumps(text, ensure_ascii=False)
