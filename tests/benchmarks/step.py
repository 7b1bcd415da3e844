"""A training step compared with a bare one: forward, backward, clipping and optimizer on cached tensors.

Both use the same latents, noise, timesteps, text embeddings and adapter. The bare step has the library's own
optimizer, over separate tensors. A speed counts only if the losses are equal. Times are user and system CPU
seconds, because machines are shared; rounds are interleaved and medians compared.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.config import recipe
from lorakit.core import rng
from lorakit.data import batch_sampler
from lorakit.training import run_changes, run_plan, setup
from lorakit.training.held_out import DataSplit
from lorakit.training.run_folder import RunFolder
from lorakit.training.trainer import Trainer
from tests import runs

GOAL = 1.02  # ratio to the bare step
OPTIMIZERS = ("adamw", "adamw8bit")
BATCH_SIZE = 8


def cpu_seconds() -> float:
    """Return the user and system CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def make_trainer(base: str, folder: Path, optimizer: str) -> Trainer:
    """Return a trainer on noise images of one shape."""
    data = folder / "data"
    if not data.exists():
        runs.make_dataset(data, 24)
    settings = {
        "train": {"steps": 10_000, "batch_size": BATCH_SIZE, "precision": "fp32"},
        "adapter": {"rank": 16},
        "optimizer": {"name": optimizer},
    }
    file = runs.make_recipe(folder / f"{base}.yaml", base, data, folder / base, **settings)
    loaded = recipe.load_recipe(file)
    plan = run_plan.plan_training(loaded, lambda text: None)
    # One shape, so that a step is one forward pass in both cases.
    square = [item for item in plan.items if item.bucket == (64, 64)]
    plan = dataclasses.replace(plan, items=square, split=DataSplit(square, []))
    accelerator = Accelerator(cpu=True)
    session = setup.build_session(loaded, plan, accelerator.device, main=True, wait_for_everyone=lambda: None)
    run = RunFolder(folder / base)
    run_changes.start_or_resume(run, loaded, {**plan.input_hashes, "num_processes": 1})
    return Trainer(session, accelerator, run)


@dataclass(frozen=True)
class _PreparedStep:
    """Everything that a step needs, computed beforehand."""

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    cond: dict[str, torch.Tensor]


def bare_step(base: str, folder: Path, optimizer_name: str, steps: int) -> Callable[[int], float]:
    """Return a function that takes a numbered step without anything around it and returns its loss."""
    trainer = make_trainer(base, folder, optimizer_name)
    prepared = [_prepare_step(trainer, number) for number in range(steps)]
    session, parameters = trainer.session, adapters.trainable_parameters(trainer.session.denoiser)
    for _, parameter in parameters:  # tensors of their own again
        parameter.data = parameter.data.clone()
    optimizer = _library_optimizer([p for _, p in parameters], trainer.recipe.optimizer)

    def take_step(number: int) -> float:
        step = prepared[number]
        prediction = session.family.predict(session.denoiser, step.noisy_latents, step.timesteps, step.cond)
        loss = torch.nn.functional.mse_loss(prediction, step.target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return take_step


def _library_optimizer(
    parameters: list[torch.nn.Parameter], config: recipe.OptimizerConfig
) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": config.lr, "betas": (0.9, 0.999), "weight_decay": config.weight_decay}
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, **settings, fused=True)
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **settings, min_8bit_size=1)
    return optimizer


def _prepare_step(trainer: Trainer, number: int) -> _PreparedStep:
    train_set, seed = trainer.session.train_set, trainer.recipe.train.seed
    samples = batch_sampler.step_samples(number, BATCH_SIZE, train_set.caption_choices, seed)
    samples = batch_sampler.micro_batches(samples, train_set.batch_shapes, BATCH_SIZE)[0]
    batch = train_set.batch(samples, torch.device("cpu"))
    shape = tuple(batch.latents.shape[1:])
    noise = torch.stack([rng.keyed_normal(shape, seed, "noise", sample.position) for sample in samples])
    u = torch.tensor([rng.keyed_uniform(seed, "time", sample.position) for sample in samples])
    noised = trainer.session.objective.add_noise(batch.latents, noise, u)
    return _PreparedStep(noised.noisy_latents, noised.timesteps, noised.target, dict(batch.cond))


def measure(base: str, optimizer: str = "adamw8bit", *, rounds: int, steps: int) -> dict[str, Any]:
    """Return one row: medians of `rounds` interleaved rounds of `steps` steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = make_trainer(base, folder / "lorakit", optimizer)
        take_bare_step = bare_step(base, folder / "bare", optimizer, rounds * steps + 1)

        def take_full_step(number: int) -> float:
            """Do everything that the training loop does in a step: the step, its metrics, the heartbeat."""
            result = trainer.training_step.run()
            trainer.log_step(result, 0.0)
            trainer.run.heartbeat("train", number, rounds * steps, 0.0)
            return result.loss

        contestants = {"lorakit": take_full_step, "bare": take_bare_step}
        losses = {key: [take_step(0)] for key, take_step in contestants.items()}  # also the warm-up
        seconds: dict[str, list[float]] = {key: [] for key in contestants}
        for round_index in range(rounds):
            numbers = range(1 + round_index * steps, 1 + (round_index + 1) * steps)
            for key, take_step in contestants.items():
                start = cpu_seconds()
                losses[key] += [take_step(number) for number in numbers]
                seconds[key].append((cpu_seconds() - start) / steps)
        difference = max(abs(a - b) for a, b in zip(losses["lorakit"], losses["bare"], strict=True))
        assert difference <= 1e-5, f"not the same training: losses differ by {difference}"
        assert adapters.count_trainable(trainer.session.denoiser).num_modules > 0
    ratio = statistics.median(a / b for a, b in zip(seconds["lorakit"], seconds["bare"], strict=True))
    return {
        "base": base,
        "optimizer": optimizer,
        "lorakit_ms": round(1000 * statistics.median(seconds["lorakit"]), 1),
        "bare_ms": round(1000 * statistics.median(seconds["bare"]), 1),
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "loss_difference": difference,
    }


def format_report(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text."""
    return "\n".join(
        f"{row['base']}, {row['optimizer']}: {row['lorakit_ms']} ms for a step, bare {row['bare_ms']} ms, "
        f"ratio {row['ratio']} (goal {row['goal']}), losses equal within {row['loss_difference']:.1e}"
        for row in rows
    )
