"""Caching of images and captions: CPU seconds, time, peak memory and files, against another version's.

Each contestant is a process of its own, rounds are interleaved. Only the difference between a fill and the
same command with a full cache counts, so that imports and planning do not. Run it by
`python -m tests.benchmarks.caching --images 10000 --against FOLDER`, where FOLDER holds another version of
the project (`git worktree add FOLDER COMMIT`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import runs

ROOT = Path(__file__).parents[2]
GOAL, MAX_PEAK_MB = 3.0, 1500
_FILL = """
import resource, sys, time
from pathlib import Path
from lorakit.config.recipe import load_recipe
from lorakit.models import device
from lorakit.training import run_caches, run_plan
plan = run_plan.plan_training(recipe := load_recipe(Path(sys.argv[1])), lambda text: None)
caches = run_caches.RunCaches(recipe, plan, device.default_device(), lambda text: None)
used, start = time.process_time(), time.monotonic()
caches.fill(plan.all_items)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("RESULT", time.process_time() - used, time.monotonic() - start, peak / 1024)
"""


def fill(project: Path, recipe: Path, cache: Path) -> dict[str, float]:
    """Fill a cache by a version of the project; returns CPU seconds, seconds and peak memory."""
    environment = os.environ | {"PYTHONPATH": str(project), "LORAKIT_CACHE": str(cache)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-c", _FILL, str(recipe)]
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    numbers = next(line for line in result.stdout.splitlines() if line.startswith("RESULT")).split()[1:]
    return dict(zip(("cpu_s", "wall_s", "peak_mb"), map(float, numbers), strict=True))


def measure(images: int, against: Path | None, rounds: int, base: str = "tiny-unet") -> dict[str, Any]:
    """Return the medians of interleaved rounds, and the ratios of the other version to this one."""
    projects = {"this": ROOT} | ({"other": against.resolve()} if against else {})
    results: dict[str, list[dict[str, float]]] = {name: [] for name in projects}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = runs.make_dataset(folder / "data", images)
        for number in range(rounds):
            for contestant, project in projects.items():
                recipe = runs.make_recipe(folder / f"{contestant}.yaml", base, data, folder / contestant)
                cache = folder / f"cache-{contestant}-{number}"
                row = fill(project, recipe, cache)
                files = [
                    path for kind in ("latents", "text") for path in (cache / kind).rglob("*.safetensors")
                ]
                again = fill(project, recipe, cache)
                row |= {"files": len(files), "mb": sum(file.stat().st_size for file in files) / 2**20}
                results[contestant].append(row | {"again_s": again["wall_s"]})
    medians = {
        contestant: {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
        for contestant, rows in results.items()
    }
    answer: dict[str, Any] = {"images": images, "base": base, **medians}
    if against:
        ratios = {key: medians["other"][key] / medians["this"][key] for key in ("cpu_s", "wall_s")}
        answer |= {f"{key}_ratio": round(value, 2) for key, value in ratios.items()}
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.caching")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--base", default="tiny-unet")
    parser.add_argument("--against", type=Path, help="a folder with another version of the project")
    arguments = parser.parse_args()
    answer = measure(arguments.images, arguments.against, arguments.rounds, arguments.base)
    print(json.dumps(answer, indent=2))
    is_fast = answer.get("wall_s_ratio", GOAL) >= GOAL
    return 0 if is_fast and answer["this"]["peak_mb"] < MAX_PEAK_MB else 1


if __name__ == "__main__":
    sys.exit(main())
