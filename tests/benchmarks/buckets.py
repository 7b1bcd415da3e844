"""Methods of choosing buckets on simulated datasets: cropping, number of buckets, full batches.

The methods of other trainers are written here from their behaviour: kohya (a table of 64-pixel sides, nearest
aspect), OneTrainer (seventeen aspects, rounded to 64), musubi (like kohya, 16 pixels), and a native lattice
(for each image the size that crops it least). One table for each mix; means over `rounds` datasets.
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

RESOLUTION, SIZE_MULTIPLE, BATCH_SIZE, NUM_IMAGES = 1024, 16, 4, 120
# Aspects with their weights, the share of freely cropped images, and the spread of their aspects.
MIXES = {
    "camera": ({3 / 2: 30, 2 / 3: 16, 4 / 3: 26, 3 / 4: 14, 16 / 9: 6, 9 / 16: 3, 1.0: 5}, 0.15, 0.20),
    "illustration": (
        {math.sqrt(0.5): 34, 2 / 3: 16, 3 / 4: 14, 1.0: 14, 4 / 3: 8, 16 / 9: 8, 0.8: 6},
        0.60,
        0.15,
    ),
    "web crops": ({1.0: 40, 3 / 4: 20, 4 / 3: 20, 3 / 2: 10, 2 / 3: 10}, 0.95, 0.25),
}


def random_sizes(mix: str, seed: int) -> list[ImageSize]:
    """Return image sizes of about 3 megapixels."""
    aspect_weights, free_share, spread = MIXES[mix]
    rng = np.random.default_rng(seed)
    weights = np.array(list(aspect_weights.values()), float)
    aspects = rng.choice(list(aspect_weights), NUM_IMAGES, p=weights / weights.sum())
    aspects = aspects * np.exp(
        np.where(rng.random(NUM_IMAGES) < free_share, rng.normal(0, spread, NUM_IMAGES), 0)
    )
    return [(round(1732 * math.sqrt(a)), round(1732 / math.sqrt(a))) for a in aspects]


def nearest_aspect(sizes: Sequence[ImageSize], table: Sequence[ImageSize]) -> list[ImageSize]:
    """Return for each size the bucket with the nearest aspect, as all three trainers choose."""
    return [min(table, key=lambda bucket: abs(bucket[0] / bucket[1] - w / h)) for w, h in sizes]


def kohya(sizes: Sequence[ImageSize], high: int = 2048) -> list[ImageSize]:
    """Buckets with sides of 256 to `high` in steps of 64 and the longest other side within the area."""
    table = {(RESOLUTION, RESOLUTION)}
    for side in range(256, high + 1, 64):
        other = min(high, RESOLUTION**2 // side // 64 * 64)
        table |= {(side, other), (other, side)} if other >= 256 else set()
    return nearest_aspect(sizes, sorted(table))


def onetrainer(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """Buckets with aspects 1 to 4 and their inverses at the area of the square, rounded to 64."""
    aspects = [1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0]
    table = set()
    for aspect in aspects + [1 / aspect for aspect in aspects[1:]]:
        sides = RESOLUTION * math.sqrt(aspect), RESOLUTION / math.sqrt(aspect)
        table.add((round(sides[0] / 64) * 64, round(sides[1] / 64) * 64))
    return nearest_aspect(sizes, sorted(table))


def musubi(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """Buckets with a short side of half the square's to the square's, the longest other within the area."""
    table = set()
    for side in range(RESOLUTION // 2, RESOLUTION + 1, 16):
        other = RESOLUTION**2 // side // 16 * 16
        table |= {(side, other), (other, side)}
    return nearest_aspect(sizes, sorted(table))


def native(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """Buckets of all multiples of 16 within 3 % of the area; for each image the one that crops it least."""
    table = [
        (w, h)
        for w in range(256, 4096, SIZE_MULTIPLE)
        for h in range(256, 4096, SIZE_MULTIPLE)
        if abs(w * h / RESOLUTION**2 - 1) <= 0.03 and max(w, h) <= 4 * min(w, h)
    ]
    logs = np.array([math.log(w / h) for w, h in table])
    return [table[int(np.argmin(np.abs(logs - math.log(w / h))))] for w, h in sizes]


def lorakit_auto(sizes: Sequence[ImageSize]) -> list[ImageSize]:
    """The buckets of the bucket mode `auto` for this batch size."""
    return buckets.assign_buckets(sizes, RESOLUTION, SIZE_MULTIPLE, mode="auto", batch_size=BATCH_SIZE)


METHODS: dict[str, Callable[[Sequence[ImageSize]], list[ImageSize]]] = {
    "kohya, its limit 1024": lambda sizes: kohya(sizes, 1024),
    "kohya, limit 2048": kohya,
    "OneTrainer": onetrainer,
    "musubi": musubi,
    "native lattice": native,
    "lorakit auto": lorakit_auto,
}


def mean_crop(sizes: Sequence[ImageSize], chosen: Sequence[ImageSize]) -> float:
    """Return the mean share of an image that is cropped, in percent."""
    return 100 * statistics.mean(map(buckets.crop_fraction, sizes, chosen))


def unfilled(chosen: Sequence[ImageSize]) -> float:
    """Return the percentage of images in batches that are not full."""
    return 100 * sum(count % BATCH_SIZE for count in Counter(chosen).values()) / len(chosen)


def measure(rounds: int = 20) -> list[dict[str, Any]]:
    """Return one row for every mix and method.

    `optimal_crop` is the crop of the exact clustering with as many buckets as the method used, without regard
    to batches; `never_worse` is True if it crops no dataset more than the method.
    """
    lattice = buckets.bucket_sizes(RESOLUTION, SIZE_MULTIPLE)
    rows = []
    for mix in MIXES:
        datasets = [random_sizes(mix, seed) for seed in range(rounds)]
        for name, method in METHODS.items():
            start = time.process_time()
            chosen = [method(sizes) for sizes in datasets]
            seconds = (time.process_time() - start) / rounds
            crops = [mean_crop(*pair) for pair in zip(datasets, chosen, strict=True)]
            optimal = [
                mean_crop(
                    sizes,
                    buckets.cluster_buckets(
                        sizes, lattice, 1, max_buckets=len(set(method_buckets)), empty_slot_cost=0.0
                    ),
                )
                for sizes, method_buckets in zip(datasets, chosen, strict=True)
            ]
            pixels = (
                statistics.mean(w * h for dataset_buckets in chosen for w, h in dataset_buckets)
                / RESOLUTION**2
            )
            rows.append(
                {
                    "mix": mix,
                    "method": name,
                    "crop": round(statistics.mean(crops), 2),
                    "buckets": round(
                        statistics.mean(len(set(method_buckets)) for method_buckets in chosen), 1
                    ),
                    "unfilled": round(statistics.mean(map(unfilled, chosen)), 1),
                    "pixels": round(100 * pixels),
                    "optimal_crop": round(statistics.mean(optimal), 2),
                    "never_worse": all(a <= b + 1e-6 for a, b in zip(optimal, crops, strict=True)),
                    "milliseconds": round(1000 * seconds, 1),
                }
            )
    return rows


def format_report(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        f"{NUM_IMAGES} images, batch size {BATCH_SIZE}, {RESOLUTION} px: mean crop %, buckets, % of images",
        "in unfilled batches, pixels %; and the optimal mean crop % with as many buckets",
    ]
    for row in rows:
        if row["method"] == next(iter(METHODS)):
            lines.append(f"\n{row['mix']}")
        figures = f"{row['crop']:5.2f}  {row['buckets']:5.1f}  {row['unfilled']:5.1f}  {row['pixels']:3d}"
        optimal = f"{row['optimal_crop']:5.2f}{'' if row['never_worse'] else ' WORSE'}"
        lines.append(f"  {row['method']:22} {figures}   {optimal}")
    return "\n".join(lines)


def passes(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if the exact clustering with as many buckets crops no dataset more than any method."""
    return all(row["never_worse"] for row in rows)
