"""Predictions of the planner against measured steps on this CPU: memory and time, over several settings.

Everything is predicted as `lorakit plan` does it. A step is the trainer's whole step, with loading of
batches, clipping and optimizer. Rounds are interleaved: the planner measures the machine, then steps are
measured, so that both see the same load of other programs. Memory is what torch's allocator reports.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import runs
from tests.benchmarks import bases
from tests.planner.measured import Setting, plan_run

MEMORY_GOAL, TIME_GOAL = 0.10, 0.25
SETTINGS: tuple[tuple[str, Setting], ...] = (
    ("tiny-unet", Setting(4, 64)),
    ("tiny-unet", Setting(2, 128, 1.0, "bf16", "adamw8bit")),
    ("tiny-dit", Setting(1, 64, optimizer="adamw8bit")),
    ("tiny-dit", Setting(4, 128, 1.0, "bf16")),
    ("unet-34m", Setting(1, 128)),
    ("unet-34m", Setting(4, 64, 0.5, optimizer="adamw8bit")),
    ("unet-34m", Setting(2, 128, 1.0, "bf16", "lion8bit")),
    ("unet-34m", Setting(1, 192, 0.0, "bf16")),
    ("dit-36m", Setting(1, 64, 0.5)),
    ("dit-36m", Setting(4, 64, 1.0, optimizer="adamw8bit")),
    ("dit-36m", Setting(2, 128, 0.0, "bf16")),
    ("dit-36m", Setting(1, 128, 1.0, "bf16", "lion8bit")),
)
STEP_SECONDS = 1.0  # steps of a round take about this long
MIB = 1 << 20


def measure(rounds: int = 3) -> list[dict[str, Any]]:
    """Measure all settings in `rounds` rounds each."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that no setting uses
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = runs.make_dataset(folder / "data", 1)  # a square
        for number, (base, setting) in enumerate(SETTINGS):
            target = folder / str(number)
            target.mkdir()
            rows.append(measure_setting(target, base, bases.make_base(base, folder), data, setting, rounds))
            done = f"{number + 1} of {len(SETTINGS)}"
            print(f"{done}: {base} {rows[-1]['time_error']:+.1%}", file=sys.stderr, flush=True)
    return rows


def measure_setting(
    folder: Path, name: str, base: str | Path, data: Path, setting: Setting, rounds: int
) -> dict[str, Any]:
    """Predict and measure one setting."""
    run = plan_run(folder, base, data, setting)
    run.trainer.training_step.run()  # also a warm-up, and the optimizer's states are there afterwards
    footprint = run.footprint
    moving = footprint.activations + footprint.recomputed + footprint.temporary
    resident = footprint.total - moving
    peak = resident + run.measured_activations()
    seconds, predicted = [], []
    for _ in range(rounds):
        predicted.append(run.predicted_seconds())
        first = run.measured_seconds()
        others = [run.measured_seconds() for _ in range(min(20, int(STEP_SECONDS / first)))]
        seconds.append(statistics.median([first, *others]))
    return {
        "network": name,
        "images": setting.images,
        "pixels": setting.resolution,
        "checkpointing": setting.checkpointing,
        "precision": setting.precision,
        "optimizer": setting.optimizer,
        "predicted_mib": round(footprint.total / MIB, 1),
        "peak_mib": round(peak / MIB, 1),
        "memory_error": round(footprint.total / peak - 1, 4),
        "predicted_ms": round(1000 * statistics.median(predicted), 1),
        "step_ms": round(1000 * statistics.median(seconds), 1),
        "time_error": round(statistics.median(p / s for p, s in zip(predicted, seconds, strict=True)) - 1, 4),
    }


def passes(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if all predictions reach the goals."""
    return all(
        abs(row["memory_error"]) <= MEMORY_GOAL and abs(row["time_error"]) <= TIME_GOAL for row in rows
    )


def format_report(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown, and the largest errors."""
    head = ["network", "images", "pixels", "checkpointing", "precision", "optimizer"]
    head += ["memory", "predicted", "error", "step", "predicted", "error"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [str(row[key]) for key in ("network", "images", "pixels")]
        cells += [f"{row['checkpointing']:.0%}", row["precision"], row["optimizer"]]
        for kind, unit in (("mib", "MiB"), ("ms", "ms")):
            name, measured = ("memory", row["peak_mib"]) if kind == "mib" else ("time", row["step_ms"])
            cells += [f"{measured:.0f} {unit}", f"{row[f'predicted_{kind}']:.0f} {unit}"]
            cells.append(f"{row[f'{name}_error']:+.1%}")
        lines.append(f"| {' | '.join(cells)} |")
    for name, goal in (("memory", MEMORY_GOAL), ("time", TIME_GOAL)):
        worst = max(abs(row[f"{name}_error"]) for row in rows)
        lines += ["", f"largest error of the {name}: {worst:.1%}, goal {goal:.0%}"]
    return "\n".join(lines)
