"""Ways of choosing training shapes, side by side on simulated mixes of aspects: crop, shapes, full batches.

The other tools' ways are written here from what they do: kohya (a table of 64-pixel sides, nearest aspect),
OneTrainer (seventeen aspects, rounded to 64), musubi (as kohya, 16 pixels), and a native lattice (the allowed
size that crops an image least, each image for itself). One table per mix; means over `rounds` datasets.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorakit.imaging import buckets
from lorakit.imaging.buckets import ImageSize

RESOLUTION, STEP, BATCH, IMAGES = 1024, 16, 4, 120
# Formats with their shares, how many images were cut freely, and how far from their format.
MIXES = {
    "camera": ({3 / 2: 30, 2 / 3: 16, 4 / 3: 26, 3 / 4: 14, 16 / 9: 6, 9 / 16: 3, 1.0: 5}, 0.15, 0.20),
    "illustration": (
        {math.sqrt(0.5): 34, 2 / 3: 16, 3 / 4: 14, 1.0: 14, 4 / 3: 8, 16 / 9: 8, 0.8: 6},
        0.60,
        0.15,
    ),
    "web crops": ({1.0: 40, 3 / 4: 20, 4 / 3: 20, 3 / 2: 10, 2 / 3: 10}, 0.95, 0.25),
}


def draw(mix: str, seed: int) -> list[ImageSize]:
    """Sizes of about 3 megapixels."""
    formats, free, spread = MIXES[mix]
    rng = np.random.default_rng(seed)
    weights = np.array(list(formats.values()), float)
    aspects = rng.choice(list(formats), IMAGES, p=weights / weights.sum())
    aspects = aspects * np.exp(np.where(rng.random(IMAGES) < free, rng.normal(0, spread, IMAGES), 0))
    return [(round(1732 * math.sqrt(a)), round(1732 / math.sqrt(a))) for a in aspects]


def nearest_aspect(sizes: Sequence[ImageSize], table: Sequence[ImageSize]) -> list[ImageSize]:
    """By the plain difference of aspects, as all three tools choose."""
    return [min(table, key=lambda shape: abs(shape[0] / shape[1] - w / h)) for w, h in sizes]


def kohya(sizes: Sequence[ImageSize], high: int = 2048) -> list[ImageSize]:
    """Sides from 256 to `high` in steps of 64, the longest other side within the budget, and the square."""
    table = {(RESOLUTION, RESOLUTION)}
    for side in range(256, high + 1, 64):
        other = min(high, RESOLUTION**2 // side // 64 * 64)
        table |= {(side, other), (other, side)} if other >= 256 else set()
    return nearest_aspect(sizes, sorted(table))


def onetrainer(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """Aspects 1 to 4 and their inverses at the square's area, rounded to 64."""
    aspects = [1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0]
    table = set()
    for aspect in aspects + [1 / aspect for aspect in aspects[1:]]:
        sides = RESOLUTION * math.sqrt(aspect), RESOLUTION / math.sqrt(aspect)
        table.add((round(sides[0] / 64) * 64, round(sides[1] / 64) * 64))
    return nearest_aspect(sizes, sorted(table))


def musubi(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """Short sides from half the square's to the square's in steps of 16, the longest other within budget."""
    table = set()
    for side in range(RESOLUTION // 2, RESOLUTION + 1, 16):
        other = RESOLUTION**2 // side // 16 * 16
        table |= {(side, other), (other, side)}
    return nearest_aspect(sizes, sorted(table))


def native(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """Every multiple of 16 within 3 % of the budget; each image the one that crops it least."""
    table = [
        (w, h)
        for w in range(256, 4096, STEP)
        for h in range(256, 4096, STEP)
        if abs(w * h / RESOLUTION**2 - 1) <= 0.03 and max(w, h) <= 4 * min(w, h)
    ]
    logs = np.array([math.log(w / h) for w, h in table])
    return [table[int(np.argmin(np.abs(logs - math.log(w / h))))] for w, h in sizes]


def ours(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """What `mode: auto` chooses for this batch."""
    return buckets.assign_buckets(sizes, RESOLUTION, STEP, mode="auto", batch=BATCH)


WAYS: dict[str, Callable[[Sequence[ImageSize]], list[ImageSize]]] = {
    "kohya, its limit 1024": lambda sizes: kohya(sizes, 1024),
    "kohya, limit 2048": kohya,
    "OneTrainer": onetrainer,
    "musubi": musubi,
    "native lattice": native,
    "lorakit auto": ours,
}


def crop(sizes: Sequence[ImageSize], shapes: Sequence[ImageSize]) -> float:
    """Mean share, in percent, that is cut off."""
    return 100 * statistics.mean(map(buckets.crop_fraction, sizes, shapes))


def unfilled(shapes: Sequence[ImageSize]) -> float:
    """Percent of images in batches that their shape does not fill."""
    return 100 * sum(count % BATCH for count in Counter(shapes).values()) / len(shapes)


def measure(rounds: int = 20) -> list[dict[str, Any]]:
    """One row for every mix and way. `at_its_shapes` is the crop of our exact programme when it may use as
    many shapes as that way used, batches aside; `never_worse` that it cropped no dataset more."""
    lattice = buckets.bucket_sizes(RESOLUTION, STEP)
    rows = []
    for mix in MIXES:
        datasets = [draw(mix, seed) for seed in range(rounds)]
        for name, way in WAYS.items():
            began = time.process_time()
            chosen = [way(sizes) for sizes in datasets]
            seconds = (time.process_time() - began) / rounds
            crops = [crop(*pair) for pair in zip(datasets, chosen, strict=True)]
            exact = [
                crop(sizes, buckets.cluster_buckets(sizes, lattice, 1, k=len(set(shapes)), waste=0.0))
                for sizes, shapes in zip(datasets, chosen, strict=True)
            ]
            pixels = statistics.mean(w * h for shapes in chosen for w, h in shapes) / RESOLUTION**2
            rows.append(
                {
                    "mix": mix,
                    "way": name,
                    "crop": round(statistics.mean(crops), 2),
                    "shapes": round(statistics.mean(len(set(shapes)) for shapes in chosen), 1),
                    "unfilled": round(statistics.mean(map(unfilled, chosen)), 1),
                    "pixels": round(100 * pixels),
                    "at_its_shapes": round(statistics.mean(exact), 2),
                    "never_worse": all(a <= b + 1e-6 for a, b in zip(exact, crops, strict=True)),
                    "milliseconds": round(1000 * seconds, 1),
                }
            )
    return rows


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The table for people."""
    lines = [
        f"{IMAGES} images, batch {BATCH}, {RESOLUTION} px: mean crop %, shapes, % of images in unfilled",
        "batches, pixels %; and the mean crop % of our exact programme with as many shapes",
    ]
    for row in rows:
        if row["way"] == next(iter(WAYS)):
            lines.append(f"\n{row['mix']}")
        figures = f"{row['crop']:5.2f}  {row['shapes']:5.1f}  {row['unfilled']:5.1f}  {row['pixels']:3d}"
        exact = f"{row['at_its_shapes']:5.2f}{'' if row['never_worse'] else ' WORSE'}"
        lines.append(f"  {row['way']:22} {figures}   {exact}")
    return "\n".join(lines)


def good(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether our programme, given as many shapes, crops no dataset more than any other way."""
    return all(row["never_worse"] for row in rows)
