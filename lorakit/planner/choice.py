"""The choice of memory settings for a run on a machine: the fastest that fit, and reasons in words."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lorakit.models.memory import MemorySettings, format_bytes
from lorakit.planner.demand import RunDemand
from lorakit.planner.footprint import Footprint, estimate_footprint, host_bytes, modulation_bytes
from lorakit.planner.machine import Machine
from lorakit.planner.step_time import StepTime, estimate_step

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
QUANTIZATIONS = (None, "int8", "fp8", "nf4")
QUANTIZATION_PENALTY = {None: 1.0, "int8": 1.15, "fp8": 1.2, "nf4": 1.3}
"""Factors on the time by which settings are compared: quantization changes results, the others do not.

It is chosen for the memory that it saves, not because products of integers are faster.
"""
SIMPLICITY_PENALTY = 1.02  # for each setting that is on: of two that are as fast, the simpler one


@dataclass(frozen=True)
class FixedSettings:
    """Settings that the recipe or the run decides; None where the planner does."""

    quantize: str | None = None
    """`none` for no quantization."""
    stream: float | None = None
    gradient_checkpointing: float | None = None
    offload_activations: bool | None = None
    offload_modulation: bool | None = None


@dataclass(frozen=True)
class Option:
    """Memory settings with the predictions for them."""

    settings: MemorySettings
    micro_batch: int
    footprint: Footprint
    step: StepTime
    fits: bool
    host_bytes: int
    compared_seconds: float
    """Time of a step without the faster products of quantized weights."""

    def to_json(self) -> dict[str, Any]:
        """Return the option as plain values."""
        return {
            "memory": self.settings.to_json(),
            "images_at_once": self.micro_batch,
            "peak_bytes": self.footprint.total,
            "step_seconds": self.step.to_json()["total"],
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Choice:
    """The chosen settings, the reasons, and other options that fit."""

    best: Option
    reasons: tuple[str, ...]
    alternatives: tuple[Option, ...] = field(default=())


def choose(
    demand: RunDemand,
    machine: Machine,
    fixed: FixedSettings | None = None,
    *,
    quantizations: Collection[str | None] = QUANTIZATIONS,
    micro_batch: int | None = None,
) -> Choice:
    """Choose the settings of a run: the fastest that fit; if none fits, those that need least memory.

    `quantizations` are those that the adapter and the device can have. `micro_batch` limits the images of a
    forward pass.
    """
    fixed = fixed or FixedSettings()
    options = [
        evaluate(demand, settings, machine, size)
        for settings in _candidates(demand, machine, fixed, quantizations)
        for size in _micro_batches(min(demand.batch_size, micro_batch or demand.batch_size))
    ]
    fitting = [option for option in options if option.fits]
    if not fitting:
        best = min(options, key=lambda option: (option.footprint.total, option.step.total))
        return Choice(best, (_shortage(best, machine),))
    best = min(fitting, key=_cost)
    return Choice(best, tuple(_reasons(demand, best, options, machine, fixed)), _alternatives(best, fitting))


def evaluate(demand: RunDemand, settings: MemorySettings, machine: Machine, micro_batch: int) -> Option:
    """Predict memory and time of one option."""
    footprint = estimate_footprint(demand, settings, micro_batch, machine.context_bytes)
    step = estimate_step(demand, settings, machine, micro_batch)
    host = host_bytes(demand.network, settings, micro_batch)
    fits = footprint.total <= machine.usable_bytes and (not host or host <= machine.host_bytes)
    compared = step.total
    if settings.quantize in machine.linear:
        plain = estimate_step(demand, replace(settings, quantize=None), machine, micro_batch)
        compared = max(step.total, plain.computing)
    return Option(settings, micro_batch, footprint, step, fits, host, compared)


def _candidates(
    demand: RunDemand, machine: Machine, fixed: FixedSettings, quantizations: Collection[str | None]
) -> Iterator[MemorySettings]:
    host = machine.has_own_memory
    kinds = [None if fixed.quantize == "none" else fixed.quantize] if fixed.quantize else list(quantizations)
    streams = _values(fixed.stream, SHARES if host else (0.0,))
    shares = _values(fixed.gradient_checkpointing, SHARES)
    activations = _values(fixed.offload_activations, (False, True) if host else (False,))
    has_modulation = bool(modulation_bytes(demand.network, MemorySettings()))
    modulation = _values(fixed.offload_modulation, (False, True) if host and has_modulation else (False,))
    for values in itertools.product(kinds, streams, shares, activations, modulation):
        yield MemorySettings(*values)  # type: ignore[arg-type]


def _values(fixed: Any, free: tuple[Any, ...]) -> tuple[Any, ...]:
    return free if fixed is None else (fixed,)


def _micro_batches(batch_size: int) -> list[int]:
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def _cost(option: Option) -> float:
    settings = option.settings
    switched_on = (settings.stream, settings.offload_activations, settings.offload_modulation)
    on = sum(map(bool, switched_on)) + (settings.gradient_checkpointing > 0)
    cost = option.compared_seconds * QUANTIZATION_PENALTY[settings.quantize]
    return cost * SIMPLICITY_PENALTY ** (on + settings.stream + settings.gradient_checkpointing)


def _shortage(option: Option, machine: Machine) -> str:
    return (
        f"nothing fits: at least {format_bytes(option.footprint.total)} are needed, and a run may fill"
        f" {format_bytes(machine.usable_bytes)} of {machine.name}"
    )


def _alternatives(best: Option, fitting: list[Option]) -> tuple[Option, ...]:
    """Return the best option of each other quantization, and the one with the least memory."""
    others = []
    for kind in QUANTIZATIONS:
        same = [option for option in fitting if option.settings.quantize == kind]
        if same and kind != best.settings.quantize:
            others.append(min(same, key=_cost))
    smallest = min(fitting, key=lambda option: (option.footprint.total, option.step.total))
    if smallest.footprint.total < 0.9 * best.footprint.total and smallest not in others:
        others.append(smallest)
    return tuple(others)


def _reasons(
    demand: RunDemand, best: Option, options: list[Option], machine: Machine, fixed: FixedSettings
) -> Iterator[str]:
    """Yield a sentence for each setting that is on, and for what is off although it would save memory."""
    settings = best.settings
    plain = evaluate(demand, MemorySettings(), machine, demand.batch_size)
    yield (
        f"without any of these settings the run needs {format_bytes(plain.footprint.total)}; it may fill"
        f" {format_bytes(machine.usable_bytes)} of {machine.name}"
    )
    if settings.quantize:
        yield _quantization_reason(best, options, fixed)
    changes = (
        ("stream", 0.0, f"stream {settings.stream:.0%} of the blocks from main memory"),
        (
            "gradient_checkpointing", 0.0,
            f"recompute the activations of {settings.gradient_checkpointing:.0%} of the blocks",
        ),
        ("offload_activations", False, "keep activations in main memory"),
        ("offload_modulation", False, "compute modulation in main memory, which sees no tokens"),
    )  # fmt: skip
    for key, off, words in changes:
        if getattr(settings, key):
            if getattr(fixed, key) is not None:
                yield f"{words}: the recipe says so"
                continue
            without = evaluate(demand, _replace(settings, key, off), machine, best.micro_batch)
            saved = without.footprint.total - best.footprint.total
            slower = best.step.total / without.step.total - 1
            yield f"{words}: saves {format_bytes(max(0, saved))} and costs {max(0.0, slower):.0%} of the time"
    if best.micro_batch < demand.batch_size:
        yield (
            f"{best.micro_batch} of {demand.batch_size} images at once: more would not fit, or be slower; the"
            " batch of a step stays the same"
        )
    yield f"a step is limited by {best.step.limit}"


def _replace(settings: MemorySettings, key: str, value: Any) -> MemorySettings:
    return replace(settings, **{key: value})


def _quantization_reason(best: Option, options: list[Option], fixed: FixedSettings) -> str:
    kind = best.settings.quantize
    if fixed.quantize:
        return f"quantize to {kind}: decided by the recipe or by the run"
    plain = [option for option in options if option.fits and option.settings.quantize is None]
    if not plain:
        return f"quantize to {kind}: no other settings fit without it"
    fastest = min(option.step.total for option in plain)
    times = fastest / best.step.total
    return f"quantize to {kind}: the fastest settings without it need {times:.1f} times as long"
