"""A training step beside the bare floor: forward, backward, clip and optimizer on cached tensors, by hand.

Both see the same latents, noise, times, conditions, adapter and optimizer; no speed counts unless their
losses are equal. User and system CPU seconds, because machines are shared; rounds interleaved, medians
compared.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.config import recipe
from lorakit.core import rng
from lorakit.data import batch_sampler
from lorakit.training import optimizers, run_plan, setup, trackers
from lorakit.training.run_folder import RunFolder
from lorakit.training.trainer import Trainer
from tests import runs

GOAL = 1.10
BATCH = 8


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def trainer(base: str, folder: Path) -> Trainer:
    data = folder / "data"
    if not data.exists():
        runs.make_dataset(data, 24)
    changes = {"train": {"steps": 10_000, "batch_size": BATCH, "precision": "fp32"}, "adapter": {"rank": 16}}
    made = recipe.load_recipe(runs.make_recipe(folder / f"{base}.yaml", base, data, folder / base, **changes))
    plan = run_plan.plan_training(made, lambda text: None)
    # One shape, so that a step is one forward pass for both contestants.
    square = [item for item in plan.items if item.size == (64, 64)]
    plan = dataclasses.replace(plan, items=square)
    accelerator = Accelerator(cpu=True)
    built = setup.build_session(made, plan, accelerator.device, main=True, wait=lambda: None)
    run = RunFolder(folder / base)
    run.begin(made, plan.inputs)
    return Trainer(built, accelerator, run)


def floor(base: str, folder: Path, steps: int) -> Callable[[int], float]:
    """The same step with nothing around it; everything that can be is computed beforehand."""
    made = trainer(base, folder)
    ready = [_prepared(made, number) for number in range(steps)]
    parameters = [p for _, p in made.parameters]
    optimizer = optimizers.build_optimizer(made.parameters, made.recipe.optimizer)

    def one(number: int) -> float:
        noisy, t, target, cond = ready[number]
        prediction = made.made.family.predict(made.made.denoiser, noisy, t, cond)
        loss = torch.nn.functional.mse_loss(prediction, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return one


def _prepared(made: Trainer, number: int) -> tuple[Any, ...]:
    data, seed = made.made.train, made.settings.seed
    slots = batch_sampler.step_samples(number, BATCH, data.captions, seed)
    slots = batch_sampler.micro_batches(slots, data.shapes, BATCH)[0]
    batch = data.batch(slots, torch.device("cpu"))
    shape = tuple(batch.latents.shape[1:])
    noise = torch.stack([rng.keyed_normal(shape, seed, "noise", slot.position) for slot in slots])
    u = torch.tensor([rng.keyed_uniform(seed, "time", slot.position) for slot in slots])
    return (*made.made.objective.noise(batch.latents, noise, u), batch.cond)


def measure(base: str, *, rounds: int, steps: int) -> dict[str, Any]:
    """One row: medians of `rounds` interleaved rounds of `steps` steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = trainer(base, folder)
        bare = floor(base, folder, rounds * steps + 1)
        remote = trackers.TrackerProcess("none", folder, {})

        def whole(number: int) -> float:
            """What the loop does every step: the step, its row of metrics, the heartbeat."""
            loss, norm = ours.step()
            ours.log(remote, loss, norm, 0.0)
            ours.run.heartbeat("train", number, rounds * steps, 0.0)
            return loss

        losses: dict[str, list[float]] = {"ours": [whole(0)], "floor": [bare(0)]}  # also the warm-up
        seconds: dict[str, list[float]] = {"ours": [], "floor": []}
        for round_ in range(rounds):
            span = range(1 + round_ * steps, 1 + (round_ + 1) * steps)
            contestants = {"ours": whole, "floor": bare}
            for who, act in contestants.items():
                began = cpu_seconds()
                losses[who] += [act(number) for number in span]
                seconds[who].append((cpu_seconds() - began) / steps)
        difference = max(abs(a - b) for a, b in zip(losses["ours"], losses["floor"], strict=True))
        assert difference <= 1e-5, f"not the same training: losses differ by {difference}"
        assert adapters.count_trainable(ours.made.denoiser)[0] > 0
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["floor"], strict=True))
    return {
        "base": base,
        "lorakit_ms": round(1000 * statistics.median(seconds["ours"]), 1),
        "floor_ms": round(1000 * statistics.median(seconds["floor"]), 1),
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "loss_difference": difference,
    }
