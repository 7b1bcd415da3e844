"""Training steps on this CPU, measured: memory by torch's own allocator events, time in CPU seconds."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorakit.config import recipe
from lorakit.training import run_changes, run_plan, setup
from lorakit.training.run_folder import RunFolder
from lorakit.training.trainer import Trainer
from tests import runs


def make_trainer(folder: Path, base: str | Path, data: Path, **changes: Any) -> Trainer:
    """Return a trainer before its first step."""
    file = runs.make_recipe(folder / "recipe.json", base, data, folder / "run", **changes)
    loaded = recipe.load_recipe(file)
    plan = run_plan.plan_training(loaded, lambda text: None)
    accelerator = Accelerator(cpu=True)
    session = setup.build_session(loaded, plan, accelerator.device, main=True, wait_for_everyone=lambda: None)
    run = RunFolder(folder / "run")
    run_changes.start_or_resume(run, loaded, {**plan.input_hashes, "num_processes": 1})
    return Trainer(session, accelerator, run)


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
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def cpu_seconds() -> float:
    """Return the user and system CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
