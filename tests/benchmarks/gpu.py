"""Published models at full size with random weights, built on the device: step time, MFU, memory, caps.

`python -m tests.benchmarks --gpu` trains SDXL, SD1.5, Flux.1, Flux.2 klein, Qwen-Image and Z-Image for some
steps each, through lorakit's own setup, memory settings, acceleration and training step; latents and text
embeddings are random, in the shapes of the models. Then it emulates smaller cards with
`torch.cuda.set_per_process_memory_fraction`, with the settings that the planner chooses for them. Each result
is written at once, and each model has a budget of seconds. In miniature, on the tiny bases of the tests, it
runs on a CPU.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import first_line
from lorakit.data.dataset import Batch, TrainingSet
from lorakit.models import memory
from lorakit.models.families.published_models import PUBLISHED_MODELS, PublishedModel
from lorakit.models.memory import MemorySettings, quantize
from lorakit.planner.machine import this_machine
from lorakit.planner.network_count import NetworkCount
from lorakit.planner.published import stored_counts
from lorakit.planner.table import describe_settings, machine_with_memory, plan_model
from lorakit.training import acceleration_plan, run_changes, run_plan, setup
from lorakit.training.run_folder import RunFolder
from lorakit.training.trainer import Trainer
from tests import runs, tiny

KEYS = ("sdxl", "sd15", "flux1-dev", "flux2-klein", "qwen-image", "z-image")
GOALS = {"sdxl": 0.045, "sd15": 0.012, "flux1-dev": 0.33, "qwen-image": 0.40}
"""Seconds a step on an H200."""
CAPS_GIB = (6, 8, 12, 24)
PEAK_FLOPS = {"H200": 790e12, "H100": 790e12, "A100": 312e12, "4090": 165e12, "3090": 71e12, "3060": 25.5e12}
"""Dense bf16 products a second that the hardware reaches; of others the planner's figure is taken."""
WARM_UP_STEPS, MAX_STEPS, IMAGES = 3, 20, 4


@dataclass(frozen=True)
class Subject:
    """A model to be measured: its tiny base, and its full size; None for the tiny one itself."""

    key: str
    base: Path
    model: PublishedModel | None

    @property
    def count(self) -> NetworkCount | None:
        """The model's counted work."""
        return stored_counts()[self.key] if self.model else None


class SyntheticSet(TrainingSet):
    """A training set whose latents and text embeddings are random, in the shapes of a model."""

    def __init__(self, real: TrainingSet, model: PublishedModel) -> None:
        self.__dict__.update(real.__dict__)
        self.model, self.family = model, real._text.family
        self.batch_shapes = [self.batch_shapes[0]] * len(self.items)

    def load_batch(self, samples: Any, caption_transform: Any = None) -> Batch:
        """Return random tensors that are the same for the same images."""
        generator = torch.Generator().manual_seed(samples[0].position)
        latents = torch.randn(len(samples), *self.model.latents, generator=generator)
        conds = [
            {
                name: torch.ones(shape, dtype=dtype)
                if dtype == torch.bool
                else torch.randn(shape, generator=generator).to(torch.bfloat16)
                for name, (shape, dtype) in self.model.shapes().items()
            }
            for _ in samples
        ]
        return Batch(latents, self.family.collate(conds, self.text_multiple), None)


def subjects(*, miniature: bool) -> list[Subject]:
    """Return the models to measure."""
    by_key = {model.key: model for model in PUBLISHED_MODELS}
    return [Subject(key, tiny.tiny_folder(key), None if miniature else by_key[key]) for key in KEYS]


def build_network(model: PublishedModel, device: torch.device) -> torch.nn.Module:
    """Build a network at full size on the device, in bfloat16 on a GPU; its weights are random."""
    import diffusers

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            network: torch.nn.Module = getattr(diffusers, model.network_class)(**model.config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return network.train(False).requires_grad_(False)


def make_trainer(subject: Subject, folder: Path, device: torch.device, settings: MemorySettings) -> Trainer:
    """Return a trainer on a model, through lorakit's own plan, setup and memory settings."""
    data, out = folder / "data", folder / "run"
    if not data.exists():
        runs.make_dataset(data, IMAGES)
    keys = ("stream", "gradient_checkpointing", "offload_activations", "offload_modulation")
    chosen = {key: getattr(settings, key) for key in keys} | {"quantize": settings.quantize or "none"}
    precision = "fp32" if device.type == "cpu" else "bf16"
    train = {"steps": 10_000, "batch_size": 1, "precision": precision, "save_every": 10_000}
    file = runs.make_recipe(
        folder / "recipe.json",
        subject.base,
        data,
        out,
        train=train,
        memory=chosen,
        adapter={"rank": 16},
        optimizer={"name": "adamw8bit" if device.type == "cuda" else "adamw"},
        validate={"fraction": 0},
    )
    loaded = recipe.load_recipe(file)
    plan = run_plan.plan_training(loaded, lambda text: None)

    def load(_: Any, __: Any, decided: MemorySettings, ___: torch.device) -> Any:
        pipe = setup.load_trained_components(loaded, plan, MemorySettings(), torch.device("cpu"))
        if subject.model is not None:
            network = build_network(subject.model, device)
            if decided.quantize:
                quantize.quantize_linear_layers(network, decided.quantize, device, torch.bfloat16)
            setattr(pipe, plan.family.components.denoiser, network)
        else:
            pipe.to(device)
            if decided.quantize:
                dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
                network = plan.family.denoiser(pipe)
                quantize.quantize_linear_layers(network, decided.quantize, device, dtype)
        return pipe

    accelerator = Accelerator(cpu=device.type == "cpu")
    session = setup.build_session(loaded, plan, device, main=True, wait_for_everyone=lambda: None, load=load)
    if subject.model is not None:
        session = dataclasses.replace(session, train_set=SyntheticSet(session.train_set, subject.model))
    run = RunFolder(out)
    run_changes.start_or_resume(run, loaded, {**plan.input_hashes, "num_processes": 1})
    return Trainer(session, accelerator, run)


def measure(
    subject: Subject, folder: Path, device: torch.device, settings: MemorySettings, seconds: float
) -> dict[str, Any]:
    """Return one row: seconds a step, MFU, peak memory and launches; `seconds` limit its steps."""
    deadline = time.monotonic() + seconds
    if (folder / "run").exists():
        storage.remove_folder(folder / "run")
    trainer = make_trainer(subject, folder, device, settings)
    with acceleration_plan.accelerated(trainer) as acceleration:
        for _ in range(WARM_UP_STEPS):
            _take_step(trainer)
        _reset_peak(device)
        times: list[float] = []
        while len(times) < MAX_STEPS and (len(times) < 2 or time.monotonic() < deadline):
            _synchronize(device)
            start = time.monotonic()
            _take_step(trainer)
            _synchronize(device)
            times.append(time.monotonic() - start)
        peak = _peak_bytes(device)
        launches = count_launches(lambda: _take_step(trainer), device)
    step_seconds = sorted(times)[len(times) // 2]
    return {
        "step_seconds": round(step_seconds, 5),
        "mfu": mfu(subject.count, step_seconds, device),
        "peak_gib": None if peak is None else round(peak / 2**30, 2),
        "launches": launches,
        "steps": len(times),
        "memory": describe_settings(settings),
        "acceleration": acceleration.to_json(),
    }


def _take_step(trainer: Trainer) -> None:
    trainer.training_step.run()
    for result in trainer.training_step.read_results(wait=False):
        trainer.log_step(result, 0.0)


def mfu(count: NetworkCount | None, step_seconds: float, device: torch.device) -> float | None:
    """Return (2 L + 3.5 A) / (seconds x peak): L and A are the operations of a forward pass."""
    if count is None or device.type == "cpu":
        return None
    linear = sum(p.number * (p.passes.forward.linear + p.passes.forward.convolution) for p in count.parts)
    attention = sum(p.number * p.passes.forward.attention for p in count.parts)
    name = torch.cuda.get_device_name(device)
    peak = next((flops for card, flops in PEAK_FLOPS.items() if card in name), 0.0)
    peak = peak or this_machine(device).speed("bf16")
    return round((2 * linear + 3.5 * attention) / (step_seconds * peak), 3)


def count_launches(work: Callable[[], object], device: torch.device) -> int:
    """Return the kernels that `work()` starts on a GPU; on a CPU the operations, each of which is one."""
    activity = torch.profiler.ProfilerActivity
    if device.type == "cuda":
        with torch.profiler.profile(activities=[activity.CUDA]) as profile:
            work()
            _synchronize(device)
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    with torch.profiler.profile(activities=[activity.CPU]) as profile:
        work()
    return sum(event.name.startswith("aten::") for event in profile.events())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _free(device: torch.device) -> None:
    gc.collect()
    memory.empty_device_cache(device)


def cases(
    subject: Subject, device: torch.device, *, caps: bool
) -> Iterator[tuple[str, float | None, MemorySettings]]:
    """Yield name, cap in GiB and memory settings: all of the device first, then smaller cards."""
    checkpointing = 0.0
    if device.type == "cuda" and subject.model:
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        checkpointing = plan_model(
            subject.key, machine_with_memory(total)
        ).best.settings.gradient_checkpointing
    yield "whole device", None, MemorySettings(gradient_checkpointing=checkpointing)
    for gib in CAPS_GIB if caps else ():
        yield f"{gib} GiB", gib, plan_model(subject.key, machine_with_memory(gib)).best.settings


def run(
    folder: Path,
    write: Callable[[list[dict[str, Any]]], object],
    *,
    device: torch.device,
    budget: float = 540.0,
    miniature: bool = False,
    keys: tuple[str, ...] = KEYS,
    caps: bool = True,
) -> list[dict[str, Any]]:
    """Measure all models within `budget` seconds; `write` gets the rows after each result.

    Models come first without a cap, so that each has a figure when the time is over.
    """
    start, rows = time.monotonic(), list[dict[str, Any]]()
    chosen = [subject for subject in subjects(miniature=miniature) if subject.key in keys]
    plans = {one.key: list(cases(one, device, caps=caps)) for one in chosen}
    order = [(one, plans[one.key][0]) for one in chosen]
    for number in range(1, 1 + len(CAPS_GIB)):
        order += [(one, case) for one in chosen for case in plans[one.key][number : number + 1]]
    for number, (subject, (name, gib, settings)) in enumerate(order):
        left = budget - (time.monotonic() - start)
        row: dict[str, Any] = {"name": f"{subject.key}, {name}", "cap_gib": gib}
        row["goal"] = None if gib else GOALS.get(subject.key)
        if gib and device.type != "cuda":
            row["cap"] = "not available on this device: settings only"
        if left < 10 and not miniature:
            rows.append(row | {"error": "no time was left"})
            continue
        try:
            with _MemoryCap(device, gib):
                row |= measure(subject, folder, device, settings, left / (len(order) - number) / 2)
        except Exception as error:  # a model that fails must not end the others
            row["error"] = first_line(error)
        rows.append(row)
        _free(device)
        write(rows)
    return rows


class _MemoryCap:
    """Within the block, the process gets at most so many GiB of a GPU's memory; None is all of it."""

    def __init__(self, device: torch.device, gib: float | None) -> None:
        self.device, self.gib = device, gib

    def __enter__(self) -> None:
        """Set the limit."""
        if self.gib is not None and self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(self.gib * 2**30 / total, self.device)

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        if self.gib is not None and self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
