"""The memory settings of a run: those of its recipe, and the planner's for what it leaves out.

They are decided once, before anything is loaded, and recorded in run.json. Quantization changes results: it
stays for the whole run, also for its evaluation. The other settings stay on the same device, and are planned
again on another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorakit.config.recipe import Recipe, change_recipe
from lorakit.core.errors import ConfigError
from lorakit.models import device as devices
from lorakit.models.memory import MemorySettings, format_bytes
from lorakit.planner import networks
from lorakit.planner.choice import QUANTIZATIONS, Choice, FixedSettings, choose
from lorakit.planner.machine import free_bytes, this_machine
from lorakit.training import phases, run_demand, run_memory
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_plan import DataPlan, LogFn
from lorakit.training.step_measurement import with_measured_times

QUICK_SHARE = 0.8  # of the free memory, below which nothing needs to be counted


@dataclass(frozen=True)
class DecidedMemory:
    """The settings of a run, and the images of a forward pass."""

    settings: MemorySettings
    micro_batch: int
    choice: Choice | None = None
    """The planner's choice; None if there was nothing to choose."""

    def to_json(self, device: str) -> dict[str, Any]:
        """Return the entry of run.json."""
        values: dict[str, Any] = {
            "device": device,
            "settings": self.settings.to_json(),
            "images_at_once": self.micro_batch,
        }
        if self.choice:
            values["predicted"] = {
                "peak_bytes": self.choice.best.footprint.total,
                "step_seconds": self.choice.best.step.to_json()["total"],
            }
        return values


def decide_memory(
    recipe: Recipe,
    plan: DataPlan,
    caches: RunCaches,
    device: torch.device,
    log: LogFn,
    recorded: Mapping[str, Any] | None = None,
) -> DecidedMemory:
    """Decide the memory settings of a run on a device; `recorded` is the entry `memory` of its run.json."""
    fixed, batch = fixed_settings(recipe), recipe.train.batch_size
    if recorded:
        known = run_memory.recorded_settings(recorded)
        same_device = recorded["device"] == devices.device_name(device)
        fixed = _with_recorded(fixed, known, keep_all=same_device)
        batch = min(batch, int(recorded["images_at_once"]))
    if all(value is not None for value in vars(fixed).values()) or _fits_plainly(recipe, plan, device):
        return DecidedMemory(_plain_settings(fixed), batch)
    log(phases.phase("planning the memory"))
    machine = this_machine(device)
    shapes = run_demand.cached_shapes(caches, plan)
    demand, network = run_demand.count_target(recipe, run_demand.target_of(plan), device.type, shapes)
    demand, machine = with_measured_times(recipe, network, demand, machine)
    choice = choose(demand, machine, fixed, quantizations=usable_quantizations(recipe), micro_batch=batch)
    log(f"memory: {describe_choice(choice)}")
    return DecidedMemory(choice.best.settings, choice.best.micro_batch, choice)


def decided_from(entry: Mapping[str, Any] | None) -> DecidedMemory:
    """Return what the main process of this run has decided, from the entry in run.json."""
    assert entry is not None
    return DecidedMemory(run_memory.recorded_settings(entry), int(entry["images_at_once"]))


def describe_choice(choice: Choice) -> str:
    """Return a line for the log: settings, predicted peak memory and time."""
    best = choice.best
    settings = [f"{key}={value}" for key, value in best.settings.to_json().items() if value]
    peak, words = format_bytes(best.footprint.total), ", ".join(settings) or "nothing needs to be saved"
    return f"{words} (predicted: peak {peak}, {best.step.total:.2g} s a step)"


def fixed_settings(recipe: Recipe) -> FixedSettings:
    """Return what the recipe's section `memory` decides."""
    config = recipe.memory_config
    keys = ("quantize", "stream", "gradient_checkpointing", "offload_activations", "offload_modulation")
    return FixedSettings(**{key: getattr(config, key) for key in keys})


def _with_recorded(fixed: FixedSettings, known: MemorySettings, *, keep_all: bool) -> FixedSettings:
    """Add the settings of an earlier session where the recipe says nothing."""
    values: dict[str, Any] = {"quantize": known.quantize or "none"}
    if keep_all:
        values |= {key: value for key, value in known.to_json().items() if key != "quantize"}
    return replace(fixed, **{key: value for key, value in values.items() if getattr(fixed, key) is None})


def _plain_settings(fixed: FixedSettings) -> MemorySettings:
    """Return the fixed settings, and none for the rest."""
    quantize = None if fixed.quantize in (None, "none") else fixed.quantize
    return MemorySettings(
        quantize=quantize,  # type: ignore[arg-type]
        stream=fixed.stream or 0.0,
        gradient_checkpointing=fixed.gradient_checkpointing or 0.0,
        offload_activations=bool(fixed.offload_activations),
        offload_modulation=bool(fixed.offload_modulation),
    )


def usable_quantizations(recipe: Recipe) -> list[str | None]:
    """Return the quantizations that the recipe can have: an adapter may need full weights."""
    usable: list[str | None] = []
    for kind in QUANTIZATIONS:
        try:
            change_recipe(recipe, [f"memory.quantize={kind or 'none'}"])
        except ConfigError:
            continue
        usable.append(kind)
    return usable


def _fits_plainly(recipe: Recipe, plan: DataPlan, device: torch.device) -> bool:
    """Return True if a bound many times too large, which takes milliseconds, fits the memory."""
    names = plan.family.denoiser_components(plan.base_folder)
    itemsize = devices.compute_dtype(recipe.train.precision).itemsize
    weights = sum(networks.component_bytes(plan.base_folder, [*names, "vae"], itemsize).values())
    adapter = 16 * weights // itemsize if recipe.adapter.rank > 64 else weights
    bound = run_demand.activation_bound(recipe, plan, itemsize)
    return weights + bound + 4 * adapter <= QUICK_SHARE * free_bytes(device)
