"""Published models that a device can train, by the planner: with which settings, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from lorakit.models.families.published_models import PUBLISHED_MODELS, PublishedModel
from lorakit.planner.cards import match_card
from lorakit.planner.choice import Choice, choose
from lorakit.planner.demand import RunDemand
from lorakit.planner.machine import (
    BANDWIDTH_EFFICIENCY,
    CONTEXT_BYTES,
    GIB,
    USABLE_MAIN_SHARE,
    USABLE_SHARE,
    Machine,
    machine_of_card,
)
from lorakit.planner.network_count import NetworkCount, in_precision
from lorakit.planner.published import stored_counts
from lorakit.planner.table import describe_settings

PRACTICAL_STEP_SECONDS = 5.0  # with four images a step, 1500 steps take about eight hours
MEMORY_RULE = "memory as the planner counts it, for a LoRA of rank 16 and one image at a time: `lorakit plan`"
TIME_RULE = "times at the measured speed; a real step reaches about this speed at best"
_UNMEASURED = 1e12  # operations a second, only to compare settings


@dataclass(frozen=True)
class Outlook:
    """Answer to the question if a device can train a model."""

    model: PublishedModel
    choice: Choice
    step_seconds: float | None
    """Of one image; None if the speed was not measured, or the model does not fit."""
    is_practical: bool
    """True if it fits and a run ends within hours; unless the speed was measured, True for every GPU."""

    @property
    def fits(self) -> bool:
        """True if there are settings with which it fits."""
        return self.choice.best.fits

    def to_json(self) -> dict[str, Any]:
        """Return the outlook as plain values."""
        best = self.choice.best
        return {
            "model": self.model.title,
            "resolution": self.model.resolution,
            "fits": best.fits,
            "settings": describe_settings(best.settings),
            "peak_gib": round(best.footprint.total / GIB, 1),
            "shortage": None if best.fits else f"needs {best.footprint.total / GIB:.1f} GiB",
            "step_seconds": None if self.step_seconds is None else float(f"{self.step_seconds:.2g}"),
            "practical": self.is_practical,
        }


def training_outlook(
    device_type: str,
    memory_bytes: int,
    main_memory_bytes: int,
    weight_dtype: torch.dtype,
    teraflops_per_second: float | None,
    name: str = "",
) -> list[Outlook]:
    """Return for each published model whether, how and how fast a device with this memory trains it."""
    machine = _machine(device_type, memory_bytes, main_memory_bytes, teraflops_per_second, name)
    outlooks = []
    for model in PUBLISHED_MODELS:
        choice = choose(RunDemand(_counted(model, weight_dtype)), machine)
        seconds = choice.best.step.total if teraflops_per_second and choice.best.fits else None
        fast = device_type != "cpu" if seconds is None else seconds <= PRACTICAL_STEP_SECONDS
        outlooks.append(Outlook(model, choice, seconds, choice.best.fits and fast))
    return outlooks


def _counted(model: PublishedModel, dtype: torch.dtype) -> NetworkCount:
    return in_precision(stored_counts()[model.key], dtype.itemsize)


def _machine(device_type: str, memory: int, main_memory: int, teraflops: float | None, name: str) -> Machine:
    """Return a device as the planner sees it, with its measured speed for all products."""
    speed = teraflops * 1e12 if teraflops else _UNMEASURED
    is_shared = device_type in ("cpu", "mps")
    card = match_card(name, memory / GIB) if name else None
    link = machine_of_card(card).link if card else 1e10
    bandwidth = machine_of_card(card).bandwidth if card else 4e11 * BANDWIDTH_EFFICIENCY
    machine = Machine(
        name=name or f"this device ({device_type})",
        platform=device_type,
        usable_bytes=int(memory * (USABLE_MAIN_SHARE if is_shared else USABLE_SHARE)),
        host_bytes=0 if is_shared else int(main_memory * USABLE_MAIN_SHARE),
        linear={"bf16": speed, "fp16": speed, "fp32": speed},
        convolution=speed,
        attention=speed,
        bandwidth=bandwidth,
        link=0.0 if is_shared else link,
        context_bytes=0 if device_type == "cpu" else CONTEXT_BYTES,
    )
    return replace(machine, bandwidth=2e10, launch_seconds=0.0) if device_type == "cpu" else machine
