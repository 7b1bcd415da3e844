"""Images of a run for its model card: a grid of samples, single samples, a thumbnail."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit import reports
from lorakit.adapters.publishing.card_facts import CardFacts
from lorakit.core import storage
from lorakit.core.errors import LorakitError
from lorakit.imaging import decode
from lorakit.imaging.provenance import SAMPLES_FILE

GRID_ROWS, GRID_CELL_PIXELS = 6, 224
MAX_EXAMPLES = 4
THUMBNAIL_PIXELS, MAX_THUMBNAIL_BYTES = 256, 192 << 10
"""Side and size of a thumbnail inside an adapter file, whose header ComfyUI reads up to 1 MiB."""


@dataclass(frozen=True)
class SampleImage:
    """A sampled image with its prompt; `before` is the base model's image of the same prompt and noise."""

    file: Path
    prompt: str
    seed: int
    before: Path | None = None


def find_sample_images(facts: CardFacts) -> list[SampleImage]:
    """Return the sampled images of a checkpoint: one for each prompt first, then the other seeds.

    They are those of the evaluation, else those of the training at this step; none if there are none. Images
    whose prompt repeats training data are left out.
    """
    run = facts.source.run
    if run is None:
        return []
    folder, before = run / "samples" / f"step-{facts.source.step or 0:08d}", None
    if facts.evaluation and "adapter" in facts.evaluation.images:
        folder = run / facts.evaluation.images["adapter"]
        before = run / facts.evaluation.images["base"] if "base" in facts.evaluation.images else None
    images = [
        SampleImage(
            folder / row["file"],
            row["prompt"],
            row["seed"],
            _existing(before / row["file"] if before else None),
        )
        for row in _listed(folder)
    ]
    kept = [one for one in images if one.file.is_file() and not facts.private.repeats(one.prompt)]
    return sorted(kept, key=lambda one: _rank(kept, one))


def _rank(images: Sequence[SampleImage], image: SampleImage) -> int:
    """Return the number of earlier images of the same prompt."""
    return sum(other.prompt == image.prompt for other in images[: images.index(image)])


def _existing(file: Path | None) -> Path | None:
    return file if file and file.is_file() else None


def _listed(folder: Path) -> Iterator[Mapping[str, Any]]:
    try:
        rows = storage.read_json(folder / SAMPLES_FILE)
    except (LorakitError, OSError):
        return
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("file"), str):
            yield row


def sample_grid(images: Sequence[SampleImage]) -> Image.Image | None:
    """Return one image of many samples, the base model beside the adapter; None without any."""
    rows = images[:GRID_ROWS]
    if not rows:
        return None
    columns = ["base model", "with the adapter"] if any(one.before for one in rows) else ["with the adapter"]
    cells: list[list[Image.Image | None]] = []
    for one in rows:
        pair = [decode.decode_image(one.before) if one.before else None, decode.decode_image(one.file)]
        cells.append(pair if len(columns) == 2 else pair[1:])
    heads = [one.prompt for one in rows]
    return reports.contact_sheet(cells, column_heads=columns, row_heads=heads, cell=GRID_CELL_PIXELS)


def thumbnail(images: Sequence[SampleImage]) -> bytes | None:
    """Return the first sample as a small JPEG; None without samples."""
    if not images:
        return None
    image = decode.decode_image(images[0].file).convert("RGB")
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    for quality in (90, 75, 50):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_THUMBNAIL_BYTES:
            return buffer.getvalue()
    return None
