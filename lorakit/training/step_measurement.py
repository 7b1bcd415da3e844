"""The time of a run's steps measured on this CPU, before its weights are loaded."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from lorakit.config.recipe import Recipe
from lorakit.planner.demand import RunDemand
from lorakit.planner.machine import Machine, measured_cpu
from lorakit.planner.network_count import NetworkCount
from lorakit.planner.pass_times import PassTimes, measure_pass
from lorakit.planner.step_time import kept_pass_seconds
from lorakit.training import optimizer_classes, optimizers
from lorakit.training.averaged_weights import AveragedWeights
from lorakit.training.flat_parameters import FlatParameters
from lorakit.training.run_demand import RunNetwork

MAX_PASS_SECONDS = 4.0
"""Computed seconds of a pass that is measured; a longer one is computed from the speeds of large kernels."""
MEMORY_SHARE = 0.5  # of the usable memory, for the weights and activations of what is measured
_ROUNDS = 5


def with_measured_times(
    recipe: Recipe, network: RunNetwork, demand: RunDemand, machine: Machine
) -> tuple[RunDemand, Machine]:
    """Measure a pass and the optimizer on the CPU that a run is planned for.

    A pass that takes too long for a measurement is left to the machine's speeds, which are measured then.
    Other machines are returned unchanged.
    """
    if machine.platform != "cpu":
        return demand, machine
    images = _measurable_images(demand, machine)
    if images is None:
        return demand, measured_cpu(machine, network.dtype)
    return replace(demand, times=_measure(recipe, network, demand.network, images)), machine


def _measurable_images(demand: RunDemand, machine: Machine) -> int | None:
    """Return how many images, at most the batch, a measurement has time and memory for."""
    counted, images = demand.network, demand.batch_size
    parts = counted.parts
    weights = counted.itemsize * sum(part.weights.total for part in parts)
    activations = sum(part.passes.saved_bytes + part.passes.backward_peak_bytes for part in parts)
    seconds = kept_pass_seconds(counted, machine)
    while images >= 1:
        is_small = weights + images * activations <= MEMORY_SHARE * machine.usable_bytes
        if is_small and images * seconds <= MAX_PASS_SECONDS:
            return images
        images //= 2
    return None


def _measure(recipe: Recipe, network: RunNetwork, counted: NetworkCount, images: int) -> PassTimes:
    return measure_pass(
        network.family,
        network.build,
        network.inject,
        network.latents,
        network.shapes,
        dtype=network.dtype,
        images=images,
        shorten=any(block.number > 1 for block in counted.blocks),
        update=lambda parameters: update_seconds(recipe, parameters),
    )


def update_seconds(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> float:
    """Measure the recipe's optimizer on parameters: adding up gradients, clipping, step, moving average."""
    flat = FlatParameters(
        [(str(index), parameter) for index, parameter in enumerate(parameters)],
        dtype_of=lambda parameter: parameter.dtype,
        per_tensor=recipe.optimizer.name not in optimizer_classes.ELEMENTWISE,
    )
    optimizer = optimizers.build_optimizer(flat, recipe.optimizer)
    averages = AveragedWeights(flat, optimizer, recipe.train.ema_decay)
    seconds = []
    for _ in range(1 + _ROUNDS):
        for _, parameter in flat.named:
            parameter.grad = torch.full_like(parameter, 1e-3)
        start = time.thread_time()
        flat.add_gradients()
        flat.clip_gradients(recipe.optimizer.max_grad_norm)
        optimizers.take_step(optimizer, flat)
        averages.update()
        flat.zero_gradients()
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds[1:])
