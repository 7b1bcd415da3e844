"""Learning-rate schedules: the rate of a step is a pure function of its number."""

from __future__ import annotations

import math

from lorakit.config.recipe import OptimizerConfig

DEFAULT_CYCLES, DEFAULT_POWER = 2, 2.0


def learning_rate(step: int, stage: range, config: OptimizerConfig) -> float:
    """Return the learning rate of a step, counted from 0, in the `stage` of the schedule that it belongs to.

    A run has one stage, and one more for each time that it was extended; only the first has the warmup.
    """
    warmup = warmup_steps(stage, config) if stage.start == 0 else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - stage.start - warmup) / max(1, len(stage) - warmup)
    factor = schedule_factor(progress, config)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * factor)


def warmup_steps(stage: range, config: OptimizerConfig) -> int:
    """Return the steps of linear warmup; a share is one of the steps of the first stage."""
    return config.warmup if isinstance(config.warmup, int) else round(config.warmup * len(stage))


def schedule_factor(progress: float, config: OptimizerConfig) -> float:
    """Return the factor, from 1 to 0, at a progress from 0 to 1 after the warmup."""
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "cosine_restarts":
        return 0.5 * (1 + math.cos(math.pi * (progress * (config.cycles or DEFAULT_CYCLES) % 1.0)))
    if config.schedule == "polynomial":
        return float((1.0 - progress) ** (config.power or DEFAULT_POWER))
    if config.schedule == "rex":
        return (1.0 - progress) / (1.0 - progress / 2)
    return 1.0 - progress
