"""Training steps on this CPU, predicted as `lorakit plan` does and measured: memory by torch's own allocator
events, time by the clock of the thread that computes."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorakit.config import recipe
from lorakit.models.memory import MemorySettings
from lorakit.planner.demand import RunDemand
from lorakit.planner.footprint import Footprint, estimate_footprint
from lorakit.planner.machine import cpu_machine
from lorakit.planner.step_time import estimate_step
from lorakit.training import run_changes, run_demand, run_plan, setup
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_demand import RunNetwork
from lorakit.training.run_folder import RunFolder
from lorakit.training.step_measurement import with_measured_times
from lorakit.training.trainer import Trainer
from tests import runs


@dataclass(frozen=True)
class Setting:
    """What a step's memory and time are predicted for."""

    images: int = 4
    """At once."""
    resolution: int = 64
    checkpointing: float = 0.0
    precision: str = "fp32"
    optimizer: str = "adamw"


@dataclass(frozen=True)
class PlannedRun:
    """A trainer before its first step, and what the planner counts of its run."""

    trainer: Trainer
    setting: Setting
    demand: RunDemand
    network: RunNetwork

    @property
    def settings(self) -> MemorySettings:
        """The memory settings."""
        return MemorySettings(gradient_checkpointing=self.setting.checkpointing)

    @property
    def footprint(self) -> Footprint:
        """The predicted memory."""
        return estimate_footprint(self.demand, self.settings, self.setting.images)

    def predicted_seconds(self) -> float:
        """Measure this machine, and return the predicted seconds of a step."""
        demand, machine = with_measured_times(self.trainer.recipe, self.network, self.demand, cpu_machine())
        assert demand.times is not None, "this network is too large for a measurement"
        return estimate_step(demand, self.settings, machine, self.setting.images).total

    def measured_seconds(self) -> float:
        """Take a step, and return its seconds."""
        start = time.thread_time()
        self.trainer.training_step.run()
        return time.thread_time() - start

    def measured_activations(self) -> int:
        """Return the most bytes that computing the gradients of the largest images has allocated at once."""
        step = self.trainer.training_step
        samples = step._largest_samples(self.setting.images)
        step.compute_gradients(samples)
        peak = peak_growth(lambda: step.compute_gradients(samples))
        step.parameters.zero_gradients()
        return peak


def plan_run(folder: Path, base: str | Path, data: Path, setting: Setting) -> PlannedRun:
    """Plan and prepare a run on a folder of images."""
    file = runs.make_recipe(
        folder / "recipe.json",
        base,
        data,
        folder / "run",
        resolution=setting.resolution,
        memory={"gradient_checkpointing": setting.checkpointing, "quantize": "none"},
        train={"steps": 10_000, "batch_size": setting.images, "precision": setting.precision},
        optimizer={"name": setting.optimizer},
    )
    loaded = recipe.load_recipe(file)
    plan = run_plan.plan_training(loaded, lambda text: None)
    accelerator = Accelerator(cpu=True)
    device = accelerator.device
    session = setup.build_session(loaded, plan, device, main=True, wait_for_everyone=lambda: None)
    run = RunFolder(folder / "run")
    run_changes.start_or_resume(run, loaded, {**plan.input_hashes, "num_processes": 1})
    shapes = run_demand.cached_shapes(RunCaches(loaded, plan, device, lambda text: None), plan)
    demand, network = run_demand.count_target(loaded, run_demand.target_of(plan), device.type, shapes)
    return PlannedRun(Trainer(session, accelerator, run), setting, demand, network)


def resident_bytes() -> int:
    """Return the bytes of all tensors on this CPU that something refers to."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def peak_growth(work: Callable[[], object]) -> int:
    """Return the most bytes that `work()` has allocated at once, as torch's allocator reports them."""
    with (
        _without_native_messages(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile,
    ):
        work()
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Drop what the profiler's library prints past Python: that it starts, and that there is no GPU."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
