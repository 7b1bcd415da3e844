"""Datasets with masks for tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lorakit import manifest
from lorakit.core import checksums, storage
from lorakit.imaging import decode, masks


def add_masks(folder: Path, box: tuple[int, int, int, int] = (16, 16, 48, 56), every: int = 2) -> Path:
    """Add masks with a white box to every second image of a dataset."""
    records = manifest.load_manifest(folder)
    for index in range(0, len(records), every):
        mask = Image.new("L", records[index].size)
        ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
        file = storage.save_image(folder / "masks" / f"{index}.png", mask)
        records[index] = dataclasses.replace(
            records[index],
            mask=file.relative_to(folder).as_posix(),
            mask_source="metadata",
            mask_content_hash=masks.mask_hash(mask),
        )
    manifest.save_manifest(folder, records)
    return folder


def repaint_unmasked(folder: Path, copy: Path, seed: int) -> Path:
    """Copy a dataset with other pixels outside every mask."""
    rng = np.random.default_rng(seed)
    records = manifest.load_manifest(folder)
    for index, record in enumerate(records):
        pixels = np.array(Image.open(folder / record.file))
        if record.mask:
            outside = np.array(Image.open(folder / record.mask)) == 0
            storage.copy_file(folder / record.mask, copy / record.mask)
            pixels[outside] = rng.integers(0, 255, (int(outside.sum()), 3))
        image = Image.fromarray(pixels)
        file = storage.save_image(copy / record.file, image)
        changes = {"sha256": checksums.sha256_file(file), "content_hash": decode.pixel_hash(image)}
        records[index] = dataclasses.replace(record, **changes)
    manifest.save_manifest(copy, records)
    return copy
