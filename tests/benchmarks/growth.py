"""Growth with the number of images: preparing, checking, filling the caches, and the start of a training.

Each stage is a process of its own; its row has CPU seconds, seconds, peak memory and the files of the caches.
`python -m tests.benchmarks growth --images 100 1000 10000 100000` takes hours: each row is printed when it is
measured.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorakit.core import storage
from lorakit.core.progress import Progress
from lorakit.data.tensor_cache import KINDS
from lorakit.data.tensor_shards import SUFFIX
from tests import runs
from tests.benchmarks import start_up

COUNTS = (100, 1_000)
_WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if sys.platform == "darwin" else 1024
print(round(used.ru_utime + used.ru_stime, 2), round(used.ru_maxrss * unit / 1e6, 1))
sys.exit(code)
"""


def make_images(folder: Path, count: int) -> Path:
    """Write noise images of three sizes with captions beside them; no two are near duplicates."""
    rng = np.random.default_rng(0)
    with Progress("images", count) as progress:
        for number in range(count):
            width, height = [(64, 64), (96, 64), (64, 96)][number % 3]
            noise = rng.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
            storage.save_image(folder / f"{number:06d}.png", image)
            storage.write_text(folder / f"{number:06d}.txt", f"picture {number % 50} of noise")
            progress.update(number + 1)
    return folder


def measure(folder: Path, counts: Sequence[int] = COUNTS) -> list[dict[str, Any]]:
    """Return a row for each stage and number of images."""
    rows: list[dict[str, Any]] = []
    for count in counts:
        root = folder / str(count)
        images = make_images(root / "images", count)
        lorakit, data = start_up.LORAKIT, root / "data"
        prepare = [*lorakit, "data", "prepare", str(images), "--out", str(data)]
        train = {"steps": 1, "batch_size": 4, "precision": "fp32"}
        recipe = runs.make_recipe(
            root / "recipe.json", "tiny-dit", data, root / "run", train=train, validate={"fraction": 0}
        )
        for name, command in (
            ("prepare", prepare),
            ("check", [*lorakit, "data", "check", str(data), "--fail-on", "never"]),
            ("fill the caches", [*lorakit, "cache", str(recipe)]),
            ("fill full caches", [*lorakit, "cache", str(recipe)]),
            ("train one step", [*lorakit, "train", str(recipe)]),
        ):
            row = {"name": name, "images": count, **_measure(command, root / "cache")}
            rows.append(row | {"cache_files": count_shards(root / "cache")})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def count_shards(cache: Path) -> int:
    """Return the number of files with latents, text embeddings, conditioning and masks."""
    return sum(1 for kind in KINDS for _ in (cache / kind).glob(f"*{SUFFIX}"))


def _measure(command: Sequence[str], cache: Path) -> dict[str, float]:
    """Run a command below a small process that reports the largest process among its children.

    Linux counts the memory of the parent at the start of a child as the child's: the parent imports no torch.
    """
    variables = start_up.environment() | {"LORAKIT_CACHE": str(cache)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *command],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    cpu, peak = map(float, done.stdout.split()[-2:])
    return {"cpu_seconds": cpu, "seconds": round(time.monotonic() - start, 2), "peak_mb": peak}
