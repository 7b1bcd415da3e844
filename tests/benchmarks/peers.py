"""CPU time of a step in lorakit and in other trainers, by the path of their scripts, as whole processes.

The seconds of a step are the difference of two runs of other lengths, so that start-up and end cancel out.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks import bases, start_up
from tests.benchmarks.start_up import Contestant

SHORT, LONG = 4, 24  # steps


def measure(
    folder: Path, paths: Mapping[str, Path | None], *, base: str = "unet-34m", rounds: int = 3
) -> list[dict[str, Any]]:
    """Return a row for each trainer: the median of interleaved rounds."""
    data, images = start_up.make_data(folder)
    spec = bases.make_base(base, folder)

    def contestants(steps: int) -> list[Contestant]:
        own = start_up.lorakit(folder, spec, data, steps)
        return [own, *start_up.peers(folder, spec, images, paths, steps)]

    pairs = list(zip(contestants(SHORT), contestants(LONG), strict=True))
    seconds: dict[str, list[float]] = {short.name: [] for short, _ in pairs}
    for number in range(rounds + 1):
        for short, long in pairs:
            used = [_run(one) for one in (short, long)]
            if number:  # the first one fills caches
                seconds[short.name].append((used[1] - used[0]) / (LONG - SHORT))
    own = seconds["lorakit"]
    return [
        {
            "name": name,
            "base": base,
            "step_ms": round(1000 * statistics.median(values), 1),
            "over_lorakit": round(statistics.median(a / b for a, b in zip(values, own, strict=True)), 3),
        }
        for name, values in seconds.items()
    ]


def _run(contestant: Contestant) -> float:
    shutil.rmtree(contestant.out, ignore_errors=True)
    used = start_up.measure_command(contestant.command)
    return used["cpu_seconds"]
