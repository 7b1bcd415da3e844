"""Folders of generated images for the tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

OWN = {"manifest.jsonl", "metadata.jsonl", "report.html", "report.json"}


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Return an image with structure at several scales, different for every seed."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cells, weight in ((4, 0.6), (12, 0.3), (48, 0.2)):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += weight * np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    total += rng.integers(-12, 13, total.shape)  # grain, without which it would count as blurred
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def fill(folder: Path, names: dict[str, str | None], **options: object) -> Path:
    """Save one image for each name; a text becomes its caption file."""
    for seed, (name, caption) in enumerate(names.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(seed, **options).save(path)  # type: ignore[arg-type]
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each of the user's files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in OWN
    }


def written(folder: Path) -> dict[str, bytes]:
    """Return the files that lorakit wrote."""
    return {name: (folder / name).read_bytes() for name in sorted(OWN) if (folder / name).exists()}
