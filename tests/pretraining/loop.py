"""The pre-training loop of all models: a time budget, resumable, with an average of the weights (EMA)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lorakit.core import storage
from lorakit.core.errors import NumericError

Loss = Callable[[np.random.Generator], torch.Tensor]


@dataclass
class PretrainJob:
    """The pre-training of one model; with the same `out` it resumes, and `minutes` counts all sessions."""

    name: str
    out: Path
    minutes: float
    device: str = "cpu"
    seed: int = 0
    warmup_steps: int = 100
    lr_decay_fraction: float = 0.3  # share of the minutes at the end in which the learning rate falls to zero
    ema_decay: float = 0.998
    max_grad_norm: float = 1.0
    save_every: float = 120.0  # seconds
    milestones: Sequence[float] = ()  # minutes at which `on_milestone` is called, and at the end
    quiet: bool = False
    max_steps: int | None = None
    losses: list[float] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.out / f"{self.name}.safetensors"


def run_training_loop(
    job: PretrainJob,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Loss,
    on_milestone: Callable[[torch.nn.Module, str], None] = lambda ema_model, note: None,
) -> torch.nn.Module:
    """Train `model` in place and return its averaged copy; NumericError if the loss is not finite."""
    ema_model = copy.deepcopy(model).eval().requires_grad_(False)
    step, elapsed = _resume(job, model, ema_model, optimizers)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    started_at = saved_at = time.monotonic()
    elapsed_before = elapsed
    pending = [m for m in sorted(job.milestones) if m * 60 > elapsed]
    while elapsed < job.minutes * 60 and (job.max_steps is None or step < job.max_steps):
        factor = min(
            1.0,
            (step + 1) / job.warmup_steps,
            (1 - elapsed / (job.minutes * 60)) / max(job.lr_decay_fraction, 1e-9),
        )
        value = _one_step(job, step, model, optimizers, base_rates, factor, loss)
        step += 1
        _update_ema(model, ema_model, min(job.ema_decay, (1 + step) / (10 + step)))
        now = time.monotonic()
        elapsed = elapsed_before + now - started_at
        job.losses.append(value)
        if step % 50 == 0:
            _report(job, step, elapsed, (now - started_at) / max(1, len(job.losses)))
        if now - saved_at > job.save_every:
            _save(job, model, ema_model, optimizers, step, elapsed)
            saved_at = now
        if pending and elapsed > pending[0] * 60:
            on_milestone(ema_model, f"{pending.pop(0):.0f} min")
    _save(job, model, ema_model, optimizers, step, elapsed)
    on_milestone(ema_model, "end")
    return ema_model


def _one_step(
    job: PretrainJob,
    step: int,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    base_rates: list[list[float]],
    factor: float,
    loss: Loss,
) -> float:
    # Every step has its own seed, so that a resumed run needs no generator state.
    torch.manual_seed(job.seed * 1_000_003 + step)
    with torch.autocast(job.device.split(":")[0], dtype=torch.bfloat16):
        value = loss(np.random.default_rng([job.seed, step]))
    value.backward()
    if not math.isfinite(value.item()):
        raise NumericError(
            f"{job.name}: the loss is {value.item()} at step {step}", remedy="lower the learning rate"
        )
    torch.nn.utils.clip_grad_norm_(model.parameters(), job.max_grad_norm)
    for optimizer, rates in zip(optimizers, base_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value.item()


@torch.no_grad()
def _update_ema(model: torch.nn.Module, ema_model: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema_model.parameters()), list(model.parameters()), 1 - decay)
    for kept, current in zip(ema_model.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def _report(job: PretrainJob, step: int, elapsed: float, seconds_per_step: float) -> None:
    row = {
        "step": step,
        "minutes": round(elapsed / 60, 2),
        "loss": round(float(np.mean(job.losses[-200:])), 4),
        "seconds_per_step": round(seconds_per_step, 3),
        "minutes_left": round(job.minutes - elapsed / 60, 1),
    }
    storage.append_jsonl(job.out / f"{job.name}.jsonl", row)
    if not job.quiet and step % 100 == 0:
        print(job.name, " ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def _save(
    job: PretrainJob,
    model: torch.nn.Module,
    ema_model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    elapsed: float,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"averaged.{name}": value for name, value in ema_model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}.{index}.{k}": torch.as_tensor(v) for k, v in entries.items()}
    storage.write_safetensors(job.checkpoint, tensors, {"step": str(step), "elapsed": str(elapsed)})


def _resume(
    job: PretrainJob,
    model: torch.nn.Module,
    ema_model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> tuple[int, float]:
    if not job.checkpoint.exists():
        return 0, 0.0
    tensors = storage.read_safetensors(job.checkpoint)
    model.load_state_dict(_with_prefix("model.", tensors))
    ema_model.load_state_dict(_with_prefix("averaged.", tensors))
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _with_prefix(f"optimizer{number}.", tensors).items():
            index, entry = key.split(".", 1)
            state.setdefault(int(index), {})[entry] = value
        # The parameter groups stay those of this session: the schedule multiplies the full learning rate.
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    metadata = storage.read_safetensors_metadata(job.checkpoint)
    return int(metadata["step"]), float(metadata["elapsed"])


def _with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
