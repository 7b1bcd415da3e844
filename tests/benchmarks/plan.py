"""Predictions of the planner against measured steps on this CPU: memory and time, over several settings.

Each setting is measured in this process, in which the machine's speeds are measured too, next to the steps.
Memory is what torch's allocator reports, time is CPU seconds: other programs disturb it less.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorakit.models.memory import MemorySettings
from lorakit.planner.footprint import estimate_footprint
from lorakit.planner.machine import cpu_machine, measured_cpu
from lorakit.planner.step_time import estimate_step
from lorakit.training import memory_remedies
from tests import runs, tiny
from tests.planner.measured import cpu_seconds, make_trainer, peak_growth

MEMORY_GOAL, TIME_GOAL = 0.10, 0.25
SETTINGS = tuple(itertools.product(("unet", "dit"), (1, 4), (0.0, 0.5, 1.0)))
"""Network, images at once, share of checkpointed blocks."""


def _save_base(kind: str, folder: Path) -> Path:
    """Save a pipeline with a network of about 35 million random weights."""
    pipe = tiny.build("sd15" if kind == "unet" else "sd3")
    if kind == "unet":
        channels = (64, 128, 256, 256)
        pipe.unet = type(pipe.unet)(
            block_out_channels=channels,
            in_channels=pipe.unet.config.in_channels,
            out_channels=pipe.unet.config.out_channels,
            cross_attention_dim=pipe.unet.config.cross_attention_dim,
        )
    else:
        config = dict(pipe.transformer.config) | {
            "num_layers": 8, "num_attention_heads": 8,
            "attention_head_dim": 64, "caption_projection_dim": 512,
        }  # fmt: skip
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        pipe.transformer = type(pipe.transformer)(**config)
    pipe.save_pretrained(folder / kind)
    return folder / kind


def measure(rounds: int = 3) -> list[dict[str, Any]]:
    """Measure all settings; `rounds` steps are timed in each."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = runs.make_dataset(folder / "data", 3)
        bases = {kind: _save_base(kind, folder) for kind in ("unet", "dit")}
        for number, (kind, batch, share) in enumerate(SETTINGS):
            target = folder / str(number)
            target.mkdir()
            rows.append(_measure_setting(target, bases[kind], data, kind, batch, share, rounds))
    return rows


def _measure_setting(
    folder: Path, base: Path, data: Path, kind: str, batch: int, share: float, rounds: int
) -> dict[str, Any]:
    trainer = make_trainer(
        folder,
        base,
        data,
        resolution=128,
        memory={"gradient_checkpointing": share},
        train={"steps": 100, "batch_size": batch, "precision": "fp32"},
        optimizer={"name": "adamw"},
    )
    step = trainer.training_step
    samples = step._largest_samples(batch)
    step.compute_gradients(samples)
    situation = memory_remedies.session_situation(trainer.session)
    settings: MemorySettings = situation.settings
    footprint = estimate_footprint(situation.demand, settings, batch)
    moving = footprint.activations + footprint.recomputed + footprint.temporary
    resident = footprint.total - moving
    peak = resident + peak_growth(lambda: step.compute_gradients(samples))
    seconds, predicted = [], []
    for _ in range(rounds):
        machine = measured_cpu(cpu_machine())
        start = cpu_seconds()
        step.compute_gradients(samples)
        seconds.append((cpu_seconds() - start) / torch.get_num_threads())
        predicted.append(estimate_step(situation.demand, settings, machine, batch).total)
    return {
        "network": kind,
        "images": batch,
        "checkpointing": share,
        "peak_mib": peak / 2**20,
        "memory_error": footprint.total / peak - 1,
        "step_seconds": statistics.median(seconds),
        "time_error": statistics.median(p / s for p, s in zip(predicted, seconds, strict=True)) - 1,
    }


def passes(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if all predictions reach the goals."""
    return all(
        abs(row["memory_error"]) <= MEMORY_GOAL and abs(row["time_error"]) <= TIME_GOAL for row in rows
    )


def format_report(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line for each setting."""
    lines = [
        f"{row['network']:<5} batch {row['images']} checkpoint {row['checkpointing']:<4}"
        f" peak {row['peak_mib']:7.1f} MiB, predicted {row['memory_error']:+.1%};"
        f" step {row['step_seconds']:.3f} s, predicted {row['time_error']:+.1%}"
        for row in rows
    ]
    return "\n".join([*lines, f"goals: memory {MEMORY_GOAL:.0%}, time {TIME_GOAL:.0%}"])
